"""A training, checked: settings, base model, records and the checkpoint to go on from, before anything heavy is imported."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf, open_dict

from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.template import ChatTokens, Template
from nemo_steerlm.core.tokenization import TextTokenizer, load_tokenizer
from nemo_steerlm.formats.checkpoint import check_checkpoint
from nemo_steerlm.formats.hf_config import nemo_config
from nemo_steerlm.formats.nemo_archive import is_nemo, nemo_archive
from nemo_steerlm.formats.tokenizer_files import nemo_tokenizer_config, write_tokenizer_files
from nemo_steerlm.megatron.model_config import DEFAULTS, Parallelism, check_architecture
from nemo_steerlm.training import checkpoints, config
from nemo_steerlm.training.checkpoints import TrainingState
from nemo_steerlm.training.dataset import ChatDataset


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A training whose settings and records have been checked."""

    cfg: DictConfig
    layout: Parallelism
    model_config: DictConfig
    """NeMo's ``model`` section, sizes filled in from the base model."""
    template: Template
    info: ModelInfo | None
    train: ChatDataset
    validation: ChatDataset | None
    log_dir: Path
    steps: int
    steps_per_epoch: int
    validate_every: int
    save_every: int
    state: TrainingState
    checkpoint: Path | None
    """Where to go on from."""

    @property
    def stage(self) -> str:
        """``train-value``, ``train-steer`` or ``train-chat``."""
        return self.state.fingerprint["stage"]


def plan(cfg: DictConfig, scratch: Path) -> Plan:
    """Check ``cfg`` and its records. ``scratch`` holds tokenizer files as long as the training runs.

    Raises UsageError, ConfigError or DataError; nothing heavy has been imported and no model read when it does.
    """
    layout = config.parallel_layout(cfg)
    config.check_supported(cfg)
    stored = config.stored_info(cfg)
    tokens = config.chat_tokens(cfg, stored)
    base, tokenizer = _base_model(cfg, tokens, scratch)
    model_config = _merged(base, cfg)
    check_architecture(model_config, layout)
    config.check_adapters(model_config)
    template = Template.of(tokenizer, tokens, stored.layout if stored else "nemo-sft")
    train, validation = config.read_data(cfg, template, tokenizer)
    info = config.model_info(stored, tokens, train)
    manager = cfg.exp_manager
    log_dir = Path(manager.explicit_log_dir or Path(manager.exp_dir) / manager.name)
    state = TrainingState(fingerprint=config.fingerprint(cfg, info, train))
    sft = cfg.trainer.sft
    per_epoch = len(train) // cfg.model.data.train_ds.global_batch_size
    limit = sft.limit_train_batches
    per_epoch = max(1, int(per_epoch * limit)) if isinstance(limit, float) else min(per_epoch, limit)
    steps = per_epoch * sft.max_epochs
    steps = min(steps, sft.max_steps) if sft.max_steps >= 0 else steps
    return Plan(
        cfg=cfg,
        layout=layout,
        model_config=model_config,
        template=template,
        info=info,
        train=train,
        validation=validation,
        log_dir=log_dir,
        steps=steps,
        steps_per_epoch=per_epoch,
        validate_every=_interval(sft.val_check_interval, per_epoch),
        save_every=_interval(sft.save_interval, per_epoch),
        state=state,
        checkpoint=checkpoints.find(
            log_dir / "checkpoints", state, resume=manager.resume_if_exists, chosen=cfg.model.resume_from_checkpoint
        ),
    )


def _interval(value: float, per_epoch: int) -> int:
    return max(1, round(value * per_epoch)) if isinstance(value, float) else value


def _base_model(cfg: DictConfig, tokens: ChatTokens, scratch: Path) -> tuple[DictConfig, TextTokenizer]:
    """Model config and tokenizer to start from."""
    path = cfg.model.restore_from_path
    if path is None:
        section = cfg.model.get("tokenizer")
        if section is None or section.get("model") is None:
            raise UsageError("model.restore_from_path is missing (for random weights give +model.tokenizer.model=… and sizes)")
        return OmegaConf.create({"tokenizer": section}), load_tokenizer(section.model)
    if not Path(path).exists():
        raise UsageError(f"model.restore_from_path: {path}: no such file")
    if is_nemo(path):
        return nemo_archive(path)
    config = nemo_config(check_checkpoint(path))
    tokenizer = write_tokenizer_files(path, scratch, tokens.markers)
    return OmegaConf.create({**config, "tokenizer": nemo_tokenizer_config(scratch)}), tokenizer


def _merged(base: DictConfig, cfg: DictConfig) -> DictConfig:
    """NeMo's model config: defaults, then the base model's, then what this training says; a base model keeps its architecture."""
    ours = cfg.model.copy()
    with open_dict(ours):
        if cfg.model.restore_from_path is not None:
            for key in ("encoder_seq_length", "seq_len_interpolation_factor"):
                if base.get(key) is not None and ours[key] in (None, 4096):
                    ours.pop(key)
            ours.pop("tokenizer", None)
        for key in ("restore_from_path", "resume_from_checkpoint", "data"):
            ours.pop(key)
        ours.micro_batch_size = cfg.model.data.train_ds.micro_batch_size
        ours.global_batch_size = cfg.model.data.train_ds.global_batch_size
        if ours.activations_checkpoint_granularity == "selective":
            # Command lines carry method=uniform beside it; Megatron-Core wants the rest unset.
            ours.activations_checkpoint_method = ours.activations_checkpoint_num_layers = None
    return cast(DictConfig, OmegaConf.merge(OmegaConf.load(DEFAULTS), base, ours))
