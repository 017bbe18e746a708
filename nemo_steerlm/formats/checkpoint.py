"""The check that every base model passes, whichever way it comes in: conversion, training, pipeline or server. No weight is read for it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from nemo_steerlm.core.errors import ConfigError, UsageError, nearest, shown
from nemo_steerlm.formats.checkpoint_files import FLOATS, TensorHeader, not_finite, refuse_part, refuse_pointer, tensor_headers
from nemo_steerlm.formats.families import FAMILIES
from nemo_steerlm.formats.families.base import ModelConfig
from nemo_steerlm.formats.hf_config import load_config

_UNUSED = re.compile(r"(.*\.)?rotary_emb\.inv_freq|rope_freqs\.weight|.*\.attn\.(masked_)?bias|.*\.attention\.masked_bias")
"""Tensors that hold no weights: what is computed from the config."""
_QUANTIZERS = ("quantize_config.json", "hf_quant_config.json", "quant_config.json")
"""Files that GPTQ, ModelOpt and AWQ put beside quantized weights."""


def check_checkpoint(source: str | Path, *, values: bool = False) -> ModelConfig:
    """The architecture of a Hugging Face folder or a ``.gguf``, whose tensors are all there, floats, and of its shapes.

    ``values`` looks for NaN and infinity as well, which reads the weights once.

    Raises UsageError where there is no checkpoint, ConfigError in one line where it cannot be used.
    """
    source = Path(source)
    if not source.exists():
        raise UsageError(f"{source}: no such file or folder; download the model first")
    if source.is_file():
        refuse_part(source)
        refuse_pointer(source)
    else:
        _check_folder(source)
    config = load_config(source)
    headers = tensor_headers(source)
    _check_tensors(config, headers, source)
    if values and source.is_dir() and (name := not_finite(source)):
        raise not_finite_error(source, name)
    return config


def not_finite_error(source: str | Path, name: str) -> ConfigError:
    """What is said of a tensor with NaN or infinity in it."""
    return ConfigError(f"{source}: {name} has values that are NaN or infinite; the checkpoint is damaged, download it again")


def _check_folder(folder: Path) -> None:
    for name in _QUANTIZERS:
        if (folder / name).is_file():
            raise ConfigError(f"{folder}: {name}: the weights are quantized; take the model's checkpoint in bfloat16 or float32")
    adapter = folder / "adapter_config.json"
    if adapter.is_file() and not any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        try:
            base = json.loads(adapter.read_bytes()).get("base_model_name_or_path")
        except (ValueError, AttributeError):
            base = None
        raise ConfigError(f"{folder}: an adapter of {shown(base)}, no model; merge it into its base (peft: merge_and_unload) and save that")
    if (config := folder / "config.json").is_file():
        refuse_pointer(config)


def _check_tensors(config: ModelConfig, headers: Mapping[str, TensorHeader], source: Path) -> None:
    wanted = FAMILIES[config.family].tensors(config)
    for name, header in headers.items():
        if header.dtype not in FLOATS and not _UNUSED.fullmatch(name):
            raise ConfigError(f"{source}: {name} has type {header.dtype}, which is not {', '.join(FLOATS)}; take a checkpoint in bfloat16")
    missing = [name for name in wanted if name not in headers]
    unexpected = [name for name in headers if name not in wanted and not _UNUSED.fullmatch(name) and name != "lm_head.weight"]
    if missing:
        raise ConfigError(f"{source}: {_counted(missing, 'is missing', 'are missing')}; {_advice(missing, unexpected)}")
    if unexpected:
        places = f"no place in a {config.family} model of this config.json"
        raise ConfigError(f"{source}: {_counted(unexpected, f'has {places}', f'have {places}')}")
    for name, shape in wanted.items():
        if headers[name].shape != shape:
            raise ConfigError(f"{source}: tensor {name} is {_dims(headers[name].shape)}; config.json makes it {_dims(shape)}")


def _counted(names: Sequence[str], one: str, several: str) -> str:
    return f"tensor {names[0]} {one}" if len(names) == 1 else f"tensor {names[0]} and {len(names) - 1} more {several}"


def _advice(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """What may have become of ``missing``."""
    if list(missing) == ["lm_head.weight"]:
        return "add it, or set tie_word_embeddings to true in config.json if the embedding is the output layer too"
    if near := nearest(missing[0], unexpected):
        return f"{near}rename the tensors as transformers saves them"
    return f"found {shown(unexpected[0])} instead" if unexpected else "the files and config.json are not of one model"


def _dims(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"
