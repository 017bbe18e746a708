"""The configuration of a training, composed by Hydra and checked before a model is loaded. Imports neither NeMo nor torch."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_steerlm.core.attributes import PRESETS, Attribute, AttributeSchema
from nemo_steerlm.core.errors import ConfigError, UsageError, shown
from nemo_steerlm.core.model_info import FILE_NAME, ModelInfo
from nemo_steerlm.core.objectives import objective
from nemo_steerlm.core.template import ChatTokens, Template
from nemo_steerlm.core.tokenization import TextTokenizer
from nemo_steerlm.training import token_files
from nemo_steerlm.training.batches import epoch_size
from nemo_steerlm.training.dataset import ChatDataset
from nemo_steerlm.training.mixture import Mixture
from nemo_steerlm.training.settings import CONF, plain


def compose(overrides: Sequence[str]) -> DictConfig:
    """``gpt_sft.yaml`` with command-line overrides as Hydra reads them. Raises UsageError for an unknown key or a broken override.

    ``--config-path`` and ``--config-name`` choose another file, as in every Hydra program.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException

    overrides = list(overrides)
    folder = _option(overrides, "--config-path", "-cp") or str(CONF)
    name = _option(overrides, "--config-name", "-cn") or "gpt_sft"
    for override in overrides:
        if override.startswith("-"):
            raise UsageError(f"unknown option {shown(override)}; settings are written key=value")
    try:
        with initialize_config_dir(str(Path(folder).absolute()), version_base=None):
            cfg = hydra_compose(name, overrides=[_escaped(o) for o in overrides])
        OmegaConf.resolve(cfg)
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(_sentence(error, overrides)) from error
    return cfg


def _option(arguments: list[str], *names: str) -> str | None:
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in names:
            del arguments[i]
            return value if equals else (arguments.pop(i) if i < len(arguments) else None)
    return None


_TOKEN = re.compile(r"(\+{0,2}model\.data\.chat_prompt_tokens\.\w+)=(.*)", re.DOTALL)
_PLACE = re.compile(r"(\+{0,2}[\w.]+(?:_path|_dir|_file|_from_checkpoint|\.info))=([^'\"\[{].*)", re.DOTALL)


def _escaped(override: str) -> str:
    """What people write unquoted, as Hydra's grammar takes it: control characters, backslashes, angle brackets, ``=`` in a path."""
    match = _TOKEN.fullmatch(override) or _PLACE.fullmatch(override)
    if not match or match[2] in ("", "null", "???") or match[2][0] in "'\"" or match[2].startswith(("\\'", "${")):
        return override
    if match.re is _PLACE and re.fullmatch(r"[\w./:+%@?~-]+", match[2]):
        return override
    return f"{match[1]}='{match[2]}'" if "'" not in match[2] else override


def _sentence(error: Exception, overrides: Sequence[str]) -> str:
    cause = str(error.__cause__ or error).strip().splitlines()
    text = " ".join(str(error).split())
    if found := re.search(r"Could not override '([^']+)'", str(error)):
        key = found[1]
        known = _keys(OmegaConf.load(CONF / "gpt_sft.yaml"))
        near = difflib.get_close_matches(key, known, n=1)
        return f"unknown key {key}{f'; did you mean {near[0]}?' if near else ''} (a key that is not in gpt_sft.yaml is added with +{key}=…)"
    return cause[0] if cause and not overrides else text[:300]


def _keys(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, DictConfig):
        return [prefix]
    return [key for name in node for key in _keys(node._get_node(name), f"{prefix}.{name}" if prefix else str(name))]


def stored_info(cfg: DictConfig) -> ModelInfo | None:
    """The ``steerlm.info`` file, or None. Raises UsageError where it cannot be read."""
    path = cfg.steerlm.info
    if path is None:
        return None
    file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
    try:
        return ModelInfo.from_dict(msgspec.json.decode(file.read_bytes()), str(file))
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(f"steerlm.info: {file}: {error}") from error


def chat_tokens(cfg: DictConfig, info: ModelInfo | None) -> ChatTokens:
    """``model.data.chat_prompt_tokens``, else those of ``steerlm.info``. Raises ConfigError where the two differ."""
    given = {name: str(token) for name, token in cfg.model.data.chat_prompt_tokens.items() if token is not None}
    base = info.tokens if info else ChatTokens()
    tokens = msgspec.structs.replace(base, **msgspec.to_builtins(_only(ChatTokens.from_shell(**given), given)))
    if info and tokens != info.tokens:
        raise ConfigError("model.data.chat_prompt_tokens differ from the tokens of steerlm.info; give them in one place")
    return tokens


def _only(tokens: ChatTokens, names: dict[str, str]) -> dict[str, str]:
    return {name: getattr(tokens, name) for name in names}


def read_data(
    cfg: DictConfig, template: Template, tokenizer: TextTokenizer, cache: Path
) -> tuple[ChatDataset | Mixture, ChatDataset | None]:
    """Training and validation records. Raises DataError by file and line, ConfigError where they are too few or of two kinds."""
    section = cfg.model.data.train_ds
    files = [_existing(file, "train_ds.file_names") for file in section.file_names or ()] or [_file(section, "train_ds")]
    sets = [token_files.dataset(file, template, tokenizer, section.max_seq_length, cache) for file in files]
    train = sets[0] if section.file_names is None else Mixture(sets, section.weights or [1.0] * len(sets))
    size = epoch_size(train)
    if size < section.global_batch_size:
        raise ConfigError(
            f"{train.file} has {size} records{' an epoch' if section.weights else ''}, fewer than one batch of "
            f"model.data.train_ds.global_batch_size={section.global_batch_size}; write at most {size}"
        )
    section = cfg.model.data.validation_ds
    if section.file_path is None or cfg.trainer.sft.limit_val_batches == 0:
        return train, None
    validation = token_files.dataset(_file(section, "validation_ds"), template, tokenizer, section.max_seq_length, cache)
    if validation.mode != train.mode:
        raise ConfigError(f"{validation.file} has type {validation.mode}, {train.file} has type {train.mode}; train on one kind")
    return train, validation


def _file(section: DictConfig, name: str) -> str:
    if OmegaConf.is_missing(section, "file_path"):
        raise UsageError(f"model.data.{name}.file_path is missing")
    return _existing(section.file_path, f"{name}.file_path")


def _existing(file: str, key: str) -> str:
    if not Path(file).is_file():
        raise UsageError(f"model.data.{key}: {file}: no such file")
    return str(file)


def model_info(stored: ModelInfo | None, tokens: ChatTokens, data: ChatDataset | Mixture) -> ModelInfo | None:
    """What the trained model will say of itself; None for plain chat. Raises ConfigError where ``steerlm.info`` and records disagree."""
    kind = objective(data.mode).kind
    if stored is not None:
        if kind is not None and stored.kind != kind:
            raise ConfigError(
                f"steerlm.info describes a {stored.kind} model, but {data.file} has type {data.mode}, which teaches a {kind} model"
            )
    elif kind is not None:
        stored = ModelInfo(kind=kind, attributes=_schema_of(data), tokens=tokens, system=data.info.system)
    else:
        return None
    return msgspec.structs.replace(stored, max_seq_length=data.info.max_seq_length, labelled=data.info.labelled)


def _schema_of(data: ChatDataset | Mixture) -> AttributeSchema:
    """The preset that knows every label of ``data``, else attributes as they were seen."""
    for preset in PRESETS.values():
        known = {a.name: set(a.values) for a in preset.attributes}
        languages_fit = data.info.languages <= set(preset.languages)
        if languages_fit and all(name in known and seen <= known[name] for name, seen in data.info.labels.items()):
            return preset
    if not data.info.labels:
        raise ConfigError(f"{data.file}: no record has a label, so there is nothing to steer by; set steerlm.info or drop the type")
    return AttributeSchema(
        attributes=tuple(
            Attribute(name=name, low=min(0, *seen), high=max(4, *seen), default=min(0, *seen)) for name, seen in data.info.labels.items()
        ),
        languages=tuple(sorted(data.info.languages)),
    )


def fingerprint(cfg: DictConfig, model_config: DictConfig, info: ModelInfo | None, train: ChatDataset | Mixture) -> dict[str, str]:
    """What makes this training this one: a checkpoint with another fingerprint is never gone on from.

    Not the schedule: a training that goes on takes the one that is configured then.
    """
    model = cfg.model
    settings = {
        "seed": model.seed,
        "global_batch_size": model.data.train_ds.global_batch_size,
        "shuffle": model.data.train_ds.shuffle,
        "max_seq_length": model.data.train_ds.max_seq_length,
        "peft": OmegaConf.to_container(model.peft) if model.peft.peft_scheme not in (None, "none") else None,
        "optimizer": {k: plain(model.optim[k]) for k in ("lr", "weight_decay", "betas", "eps") if k in model.optim},
    }
    return {
        "stage": f"train-{info.kind}" if info else "train-chat",
        "data": train.digest,
        "base model": "random" if model.restore_from_path is None else _base_digest(Path(model.restore_from_path)),
        "description": _digest(msgspec.json.encode(_described(info))) if info else "none",
        "settings": _digest(msgspec.json.encode(settings)),
        "optimizer": str(model_config.optim.name),
    }


def _described(info: ModelInfo) -> ModelInfo:
    """``info`` without what follows from data and settings, which have fingerprints of their own."""
    return msgspec.structs.replace(info, max_seq_length=msgspec.UNSET, labelled=msgspec.UNSET)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _base_digest(path: Path) -> str:
    """Sizes, and the first and last megabyte of each file: enough to tell models apart without reading 140 GB."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as content:
                size = file.stat().st_size
                digest.update(f"{size}".encode() + content.read(1 << 20))
                content.seek(max(0, size - (1 << 20)))
                digest.update(content.read())
    return f"sha256:{digest.hexdigest()}"
