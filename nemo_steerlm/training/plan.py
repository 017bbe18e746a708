"""A training, checked: settings, base model, records and the checkpoint to go on from, before anything heavy is imported."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from omegaconf import DictConfig

from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.template import Template
from nemo_steerlm.formats.tokenizer_files import require_markers
from nemo_steerlm.megatron.machine import Machine
from nemo_steerlm.megatron.model_config import Parallelism, check_architecture
from nemo_steerlm.training import checkpoints, config, settings
from nemo_steerlm.training.base_model import (
    added_tokens,
    check_exportable,
    fill_lengths,
    load_base_config,
    memory_needed,
    model_config,
    random_markers,
)
from nemo_steerlm.training.batches import epoch_size
from nemo_steerlm.training.checkpoints import TrainingState
from nemo_steerlm.training.dataset import ChatDataset
from nemo_steerlm.training.memory import GIB, Memory
from nemo_steerlm.training.mixture import Mixture
from nemo_steerlm.training.selection import Monitor

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A training whose settings and records have been checked."""

    cfg: DictConfig
    layout: Parallelism
    model_config: DictConfig
    """NeMo's ``model`` section, sizes filled in from the base model."""
    template: Template
    info: ModelInfo | None
    train: ChatDataset | Mixture
    validation: ChatDataset | None
    log_dir: Path
    steps: int
    steps_per_epoch: int
    validate_every: int
    save_every: int
    state: TrainingState
    checkpoint: Path | None
    """Where to go on from."""
    monitor: Monitor
    memory: Memory
    """What it takes of each device."""
    random_markers: tuple[int, ...]
    """Tokens whose embedding rows are learned beside adapters."""
    added_tokens: tuple[int, ...]
    """Tokens that the base model's vocabulary lacks."""

    @property
    def stage(self) -> str:
        """``train-value``, ``train-steer`` or ``train-chat``."""
        return self.state.fingerprint["stage"]


def plan_training(cfg: DictConfig, scratch: Path, machine: Machine | None = None) -> Plan:
    """Check ``cfg`` and its records, for ``machine`` (this one by default). ``scratch`` holds tokenizer files while the training runs.

    Raises UsageError, ConfigError or DataError; nothing heavy has been imported and no model read when it does.
    """
    machine = machine or Machine.here()
    layout = settings.check(cfg, machine)
    stored = config.stored_info(cfg)
    tokens = config.chat_tokens(cfg, stored)
    base, tokenizer = load_base_config(cfg, tokens, scratch)
    require_markers(tokenizer, tokens.markers, cfg.model.restore_from_path or "model.tokenizer")
    model = model_config(base, cfg, machine)
    check_architecture(model, layout, transformer_engine=machine.transformer_engine)
    settings.check_adapters(model, transformer_engine=machine.transformer_engine)
    if cfg.steerlm.export_dir is not None:
        check_exportable(model, tokenizer.vocab_size)
    fill_lengths(cfg, model)
    template = Template.of(tokenizer, tokens, stored.layout if stored else "nemo-sft")
    manager = cfg.exp_manager
    log_dir = Path(manager.explicit_log_dir or Path(manager.exp_dir) / manager.name)
    train, validation = config.read_data(cfg, template, tokenizer, Path(cfg.steerlm.token_dir or log_dir / "tokens"))
    info = config.model_info(stored, tokens, train)
    state = TrainingState(fingerprint=config.fingerprint(cfg, model, info, train))
    sft = cfg.trainer.sft
    per_epoch = epoch_size(train) // cfg.model.data.train_ds.global_batch_size
    limit = sft.limit_train_batches
    per_epoch = max(1, int(per_epoch * limit)) if isinstance(limit, float) else min(per_epoch, limit)
    needed = _memory(cfg, model, tokenizer.vocab_size, layout, train)
    steps = per_epoch * sft.max_epochs
    steps = min(steps, sft.max_steps) if sft.max_steps >= 0 else steps
    return Plan(
        cfg=cfg,
        layout=layout,
        model_config=model,
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
        memory=needed,
        random_markers=random_markers(cfg, base, tokenizer, tokens),
        added_tokens=added_tokens(cfg, tokenizer, tokens),
        monitor=Monitor.of(cfg, validates=validation is not None, attributes=list(train.info.labels)),
    )


def _memory(cfg: DictConfig, model: DictConfig, vocabulary: int, layout: Parallelism, train: ChatDataset | Mixture) -> Memory:
    """Said, and held against ``steerlm.device_memory_gb``, before anything is loaded."""
    needed = memory_needed(cfg, model, vocabulary, layout, width=train.info.longest, learned=train.info.most_learned)
    logger.info("by the sizes of model and records this training takes %s", needed)
    if cfg.steerlm.device_memory_gb is not None:
        needed.require(cfg.steerlm.device_memory_gb * GIB)
    return needed


def _interval(value: float, per_epoch: int) -> int:
    return max(1, round(value * per_epoch)) if isinstance(value, float) else value
