"""Hugging Face checkpoints to ``.nemo`` and back."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from omegaconf import open_dict

from nemo_steerlm.core.template import ChatTokens
from nemo_steerlm.formats.checkpoint import check_checkpoint
from nemo_steerlm.formats.hf_config import nemo_config
from nemo_steerlm.formats.tokenizer_files import nemo_tokenizer_config, write_tokenizer_files
from nemo_steerlm.megatron.distributed import make_trainer
from nemo_steerlm.megatron.gpt_sft import build_model
from nemo_steerlm.megatron.hf_export import export_hf
from nemo_steerlm.megatron.hf_import import load_hf_weights
from nemo_steerlm.megatron.nemo_files import restore_nemo, save_nemo

_DTYPES = {"32": torch.float32, "16": torch.float16, "bf16": torch.bfloat16}
_PRECISION_OF = {"float32": "32", "float16": "16", "bfloat16": "bf16"}

_ONE_PROCESS = {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1, "sequence_parallel": False}


def convert_hf_to_nemo(source: str | Path, out: str | Path, *, precision: str | None = None, tokens: ChatTokens | None = None) -> None:
    """Write the model in ``source`` (a Hugging Face folder or a ``.gguf``) as a ``.nemo`` that any TP and PP can load.

    ``precision`` is NeMo's (32, 16, bf16, or those with ``-mixed``); None keeps the checkpoint's own. ``tokens``' markers become single
    tokens of the vocabulary; None adds nothing.
    """
    source, out = Path(source), Path(out)
    config = check_checkpoint(source)
    precision = precision or _PRECISION_OF[config.dtype]
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer_files(source, folder, tokens.markers if tokens else ())
        cfg: dict[str, Any] = {**nemo_config(config), "tokenizer": nemo_tokenizer_config(folder)}
        model = build_model(cfg, make_trainer())
        model.to(_DTYPES[precision.removesuffix("-mixed")])
        load_hf_weights(model, source)
        with open_dict(model.cfg):
            model.cfg.precision = precision
        save_nemo(model, out)


def convert_nemo_to_hf(source: str | Path, out: str | Path) -> None:
    """Write a ``.nemo`` of any parallel layout as a Hugging Face folder; what this project trained takes its ``steerlm.json`` along."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    export_hf(restore_nemo(source, overrides=_ONE_PROCESS, scratch=out.parent), out)
