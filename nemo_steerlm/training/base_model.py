"""What a training starts from: the base model's config and tokenizer, and what they rule out. Imports neither NeMo nor torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf, open_dict

from nemo_steerlm.core.errors import ConfigError, UsageError
from nemo_steerlm.core.template import ChatTokens
from nemo_steerlm.core.tokenization import TextTokenizer, load_tokenizer
from nemo_steerlm.formats.checkpoint import check_checkpoint
from nemo_steerlm.formats.families.base import ModelConfig
from nemo_steerlm.formats.hf_config import config_from_nemo, nemo_config
from nemo_steerlm.formats.nemo_archive import is_nemo, nemo_archive
from nemo_steerlm.formats.tokenizer_files import nemo_tokenizer_config, source_vocabulary_size, write_tokenizer_files
from nemo_steerlm.megatron.machine import Machine, fitted
from nemo_steerlm.megatron.model_config import DEFAULTS, Parallelism
from nemo_steerlm.training import arithmetic, settings
from nemo_steerlm.training.config import compose
from nemo_steerlm.training.memory import Memory, Work, estimate


def load_base_config(cfg: DictConfig, tokens: ChatTokens, scratch: Path) -> tuple[DictConfig, TextTokenizer]:
    """Model config and tokenizer to start from.

    Raises:
        UsageError: If ``model.restore_from_path`` is missing, or nothing is there.
    """
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


def model_config(base: DictConfig, cfg: DictConfig, machine: Machine) -> DictConfig:
    """NeMo's model config of this training on ``machine``."""
    model = _merged(base, cfg)
    arithmetic.choose(model, cfg.trainer.precision, machine)
    return fitted(model, machine)


def _merged(base: DictConfig, cfg: DictConfig) -> DictConfig:
    """Defaults, then the base model's, then what this training says; a base model keeps its architecture."""
    ours = cfg.model.copy()
    with open_dict(ours):
        if cfg.model.restore_from_path is not None:
            ours.pop("tokenizer", None)
        for key in ("encoder_seq_length", "seq_len_interpolation_factor"):
            if ours[key] is None:
                ours.pop(key)
        for key in ("restore_from_path", "resume_from_checkpoint", "data"):
            ours.pop(key)
        ours.micro_batch_size = cfg.model.data.train_ds.micro_batch_size
        ours.global_batch_size = cfg.model.data.train_ds.global_batch_size
        if ours.activations_checkpoint_granularity == "selective":
            # Command lines carry method=uniform beside it; Megatron-Core wants the rest unset.
            ours.activations_checkpoint_method = ours.activations_checkpoint_num_layers = None
    return cast(DictConfig, OmegaConf.merge(OmegaConf.load(DEFAULTS), base, ours))


def memory_needed(cfg: DictConfig, model: DictConfig, vocabulary: int, layout: Parallelism, *, width: int, learned: int) -> Memory:
    """Of each device, where records have up to ``width`` tokens, ``learned`` of which teach something."""
    sizes = settings.sizes_of(cfg, "train_ds", layout)
    work = Work(micro_batch_size=sizes.micro_batch_size, micro_batches=sizes.micro_batches, width=width, learned=learned)
    return estimate(model, vocabulary, layout, work, bf16=str(model.precision) == "bf16")


def memory_of_a_gpu(config: ModelConfig, arguments: Sequence[str], *, width: int, learned: int) -> Memory:
    """What a training with these of the trainer's arguments takes of each GPU, before there is anything but the base model's config.

    Args:
        config: Of the base model.
        arguments: As on the trainer's command line, ``key=value``.
        width: How many tokens its longest record has.
        learned: How many of them teach something.

    Raises:
        UsageError: If a key is unknown.
        ConfigError: If a setting cannot work.
    """
    machine = Machine(cuda=True)
    cfg = compose(arguments)
    layout = settings.check(cfg, machine)
    model = model_config(OmegaConf.create(nemo_config(config)), cfg, machine)
    return memory_needed(cfg, model, config.vocab_size, layout, width=width, learned=learned)


def fill_lengths(cfg: DictConfig, model: DictConfig) -> None:
    """Records are cut to what the model was made for, where neither ``max_seq_length`` nor ``encoder_seq_length`` says otherwise.

    Raises:
        ConfigError: If ``max_seq_length`` is more than the model was made for.
    """
    for section in (cfg.model.data.train_ds, cfg.model.data.validation_ds):
        if section.max_seq_length is None:
            section.max_seq_length = model.encoder_seq_length
        if section.max_seq_length > model.encoder_seq_length and model.get("position_embedding_type") != "rope":
            raise ConfigError(
                f"max_seq_length={section.max_seq_length}: the model has positions for encoder_seq_length={model.encoder_seq_length} tokens"
            )


def random_markers(cfg: DictConfig, base: DictConfig, tokenizer: TextTokenizer, tokens: ChatTokens) -> tuple[int, ...]:
    """The markers whose embedding rows no training has seen: those that were added to a vocabulary. Adapters alone would leave them so.

    None where only some layers get adapters: their rows' gradients come through all layers, which such a training spares.
    """
    path, tuning = cfg.model.restore_from_path, cfg.model.peft.lora_tuning
    if cfg.model.peft.peft_scheme in (None, "none") or tuning.layer_selection is not None or base.get("steerlm") is not None:
        return ()
    return _markers_from(0 if path is None or is_nemo(path) else source_vocabulary_size(path), tokenizer, tokens)


def added_tokens(cfg: DictConfig, tokenizer: TextTokenizer, tokens: ChatTokens) -> tuple[int, ...]:
    """The markers that were added to the vocabulary of a Hugging Face model; a ``.nemo`` has all that it names."""
    path = cfg.model.restore_from_path
    return () if path is None or is_nemo(path) else _markers_from(source_vocabulary_size(path), tokenizer, tokens)


def _markers_from(first: int, tokenizer: TextTokenizer, tokens: ChatTokens) -> tuple[int, ...]:
    ids = (tokenizer.token_id(marker) for marker in tokens.markers)
    return tuple(i for i in ids if i is not None and i >= first)


def check_exportable(model: DictConfig, vocab_size: int) -> None:
    """Raise ConfigError where the trained model could not be written to ``steerlm.export_dir``: after days is too late to say so."""
    if model.get("window_size"):
        raise ConfigError(f"steerlm.export_dir: no exported family attends within window_size={model.window_size}; write null")
    config_from_nemo(model, vocab_size)
