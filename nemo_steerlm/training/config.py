"""The configuration of a training, composed by Hydra and checked before a model is loaded. Imports neither NeMo nor torch."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_steerlm.core.attributes import PRESETS, Attribute, AttributeSchema
from nemo_steerlm.core.errors import ConfigError, UsageError, shown
from nemo_steerlm.core.files import file_digest
from nemo_steerlm.core.model_info import FILE_NAME, ModelInfo, ModelKind
from nemo_steerlm.core.template import ChatTokens, Template
from nemo_steerlm.core.tokenization import TextTokenizer
from nemo_steerlm.megatron.model_config import Parallelism
from nemo_steerlm.training.batches import Sizes
from nemo_steerlm.training.dataset import ChatDataset, read_dataset

CONF = Path(__file__).parent / "conf"
LORA_TARGETS = ("attention_qkv", "attention_dense", "mlp_fc1", "mlp_fc2", "attention", "mlp", "all")
KINDS: dict[str | None, ModelKind | None] = {"TEXT_TO_VALUE": "value", "VALUE_TO_TEXT": "steer", None: None}


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


def _escaped(override: str) -> str:
    """A chat token as Hydra's grammar takes it: people write control characters, backslashes and angle brackets unquoted."""
    match = _TOKEN.fullmatch(override)
    if not match or match[2] in ("", "null") or match[2][0] in "'\"" or match[2].startswith("\\'"):
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


def parallel_layout(cfg: DictConfig) -> Parallelism:
    """Check sizes against each other and against the launcher. Raises ConfigError."""
    model = cfg.model
    layout = Parallelism(
        world_size=cfg.trainer.devices * cfg.trainer.num_nodes,
        tensor=model.tensor_model_parallel_size,
        pipeline=model.pipeline_model_parallel_size,
    )
    if model.context_parallel_size != 1:
        raise ConfigError("model.context_parallel_size: context parallelism is not supported for chat data; leave it at 1")
    if min(layout.tensor, layout.pipeline, layout.world_size) < 1:
        raise ConfigError("trainer.devices, trainer.num_nodes and the parallel sizes must be at least 1")
    if layout.world_size % (layout.tensor * layout.pipeline):
        raise ConfigError(
            f"trainer.devices={cfg.trainer.devices} × trainer.num_nodes={cfg.trainer.num_nodes} is no multiple of "
            f"tensor_model_parallel_size={layout.tensor} × pipeline_model_parallel_size={layout.pipeline}"
        )
    launched = os.environ.get("WORLD_SIZE")
    if launched and int(launched) != layout.world_size:
        raise ConfigError(
            f"the launcher started {launched} processes, but trainer.devices={cfg.trainer.devices} × "
            f"trainer.num_nodes={cfg.trainer.num_nodes} are configured"
        )
    for name in ("train_ds", "validation_ds"):
        sizes_of(cfg, name, layout).check(f"model.data.{name}")
    return layout


def sizes_of(cfg: DictConfig, name: str, layout: Parallelism, data_parallel_rank: int = 0) -> Sizes:
    """Batch sizes of ``model.data.<name>``."""
    section = cfg.model.data[name]
    return Sizes(
        micro_batch_size=section.micro_batch_size,
        global_batch_size=section.global_batch_size,
        data_parallel_size=layout.data,
        data_parallel_rank=data_parallel_rank,
    )


def check_adapters(model: DictConfig) -> None:
    """Raise ConfigError where ``model.peft`` asks for adapters in places that are not there, or for such as cannot be merged."""
    if model.peft.peft_scheme in (None, "none"):
        return
    tuning, key = model.peft.lora_tuning, "model.peft.lora_tuning"
    if model.get("num_moe_experts"):
        raise ConfigError(
            f"model.peft.peft_scheme=lora: the model has {model.num_moe_experts} experts a layer; train it with peft_scheme=none"
        )
    for target in tuning.target_modules:
        if target not in LORA_TARGETS:
            raise ConfigError(f"{key}.target_modules: unknown {target}; known: {', '.join(LORA_TARGETS)}")
    for number in tuning.layer_selection or ():
        if not 1 <= number <= model.num_layers:
            raise ConfigError(f"{key}.layer_selection: there is no layer {number}; they are numbered 1 to {model.num_layers}")
    if tuning.get("variant", "nemo") != "nemo" or tuning.weight_tying:
        raise ConfigError(f"{key}: only variant=nemo without weight_tying can be merged")


def check_supported(cfg: DictConfig) -> None:
    """Raise ConfigError for keys of upstream's that would be ignored although they matter, and for a schedule that NeMo asserts on."""
    if str(cfg.trainer.precision) in ("16", "16-mixed", "16-true"):
        raise ConfigError("trainer.precision=16: fp16 is not supported; write bf16 or 32")
    if cfg.model.peft.restore_from_path is not None:
        raise ConfigError("model.peft.restore_from_path: adapters are merged when a training ends; give that .nemo as restore_from_path")
    if cfg.model.peft.peft_scheme not in (None, "none", "lora"):
        raise ConfigError(f"model.peft.peft_scheme={cfg.model.peft.peft_scheme}: write lora or none")
    optim = cfg.model.optim
    floor = optim.sched.get("min_lr", 0.0) if optim.get("sched") else 0.0
    if optim.lr <= floor:
        raise ConfigError(f"model.optim.lr={optim.lr} must be above model.optim.sched.min_lr={floor}")


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


def read_data(cfg: DictConfig, template: Template, tokenizer: TextTokenizer) -> tuple[ChatDataset, ChatDataset | None]:
    """Training and validation records. Raises DataError by file and line, ConfigError where they are too few or of two kinds."""
    section = cfg.model.data.train_ds
    train = read_dataset(_file(section, "train_ds"), template, tokenizer, section.max_seq_length)
    if len(train) < section.global_batch_size:
        raise ConfigError(
            f"{train.file} has {len(train)} records, fewer than one batch of model.data.train_ds.global_batch_size="
            f"{section.global_batch_size}; write at most {len(train)}"
        )
    section = cfg.model.data.validation_ds
    if section.file_path is None or cfg.trainer.sft.limit_val_batches == 0:
        return train, None
    validation = read_dataset(_file(section, "validation_ds"), template, tokenizer, section.max_seq_length)
    if validation.mode != train.mode:
        raise ConfigError(f"{validation.file} has type {validation.mode}, {train.file} has type {train.mode}; train on one kind")
    return train, validation


def _file(section: DictConfig, name: str) -> str:
    if OmegaConf.is_missing(section, "file_path"):
        raise UsageError(f"model.data.{name}.file_path is missing")
    if not Path(section.file_path).is_file():
        raise UsageError(f"model.data.{name}.file_path: {section.file_path}: no such file")
    return str(section.file_path)


def model_info(stored: ModelInfo | None, tokens: ChatTokens, data: ChatDataset) -> ModelInfo | None:
    """What the trained model will say of itself; None for plain chat. Raises ConfigError where ``steerlm.info`` and records disagree."""
    kind = KINDS[data.mode]
    if stored is not None:
        if kind is not None and stored.kind != kind:
            raise ConfigError(
                f"steerlm.info describes a {stored.kind} model, but {data.file} has type {data.mode}, which teaches a {kind} model"
            )
        return stored
    if kind is None:
        return None
    return ModelInfo(kind=kind, attributes=_schema_of(data), tokens=tokens, system=data.system)


def _schema_of(data: ChatDataset) -> AttributeSchema:
    """The preset that knows every label of ``data``, else attributes as they were seen."""
    for preset in PRESETS.values():
        known = {a.name: set(a.values) for a in preset.attributes}
        languages_fit = data.languages <= set(preset.languages)
        if languages_fit and all(name in known and seen <= known[name] for name, seen in data.labels.items()):
            return preset
    if not data.labels:
        raise ConfigError(f"{data.file}: no record has a label, so there is nothing to steer by; set steerlm.info or drop the type")
    return AttributeSchema(
        attributes=tuple(
            Attribute(name=name, low=min(0, *seen), high=max(4, *seen), default=min(0, *seen)) for name, seen in data.labels.items()
        ),
        languages=tuple(sorted(data.languages)),
    )


def fingerprint(cfg: DictConfig, info: ModelInfo | None, train: ChatDataset) -> dict[str, str]:
    """What makes this training this one: a checkpoint with another fingerprint is never gone on from."""
    model = cfg.model
    settings = {
        "seed": model.seed,
        "global_batch_size": model.data.train_ds.global_batch_size,
        "shuffle": model.data.train_ds.shuffle,
        "max_seq_length": model.data.train_ds.max_seq_length,
        "peft": OmegaConf.to_container(model.peft) if model.peft.peft_scheme not in (None, "none") else None,
        "optimizer": {k: model.optim[k] for k in ("lr", "weight_decay") if k in model.optim},
    }
    return {
        "stage": f"train-{info.kind}" if info else "train-chat",
        "data": file_digest(train.file),
        "base model": "random" if model.restore_from_path is None else _base_digest(Path(model.restore_from_path)),
        "description": _digest(msgspec.json.encode(info)) if info else "none",
        "settings": _digest(msgspec.json.encode(settings)),
    }


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
