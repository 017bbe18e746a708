"""NeMo's tokenizer of a model whose ``.nemo`` carries a ``tokenizer.json``."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from nemo.collections.common.tokenizers.huggingface.auto_tokenizer import AutoTokenizer

from nemo_steerlm.formats.tokenizer_files import HUGGING_FACE, SETTINGS


def build_nemo_tokenizer(model: Any) -> Any | None:
    """NeMo's tokenizer for a model whose section names ``tokenizer_json``, else None (NeMo builds its own).

    Meant for ``MegatronGPTModel._build_tokenizer``: the two files are registered as artifacts, so a ``.nemo`` carries them.
    """
    section = model.cfg.tokenizer
    if not section.get("tokenizer_json"):
        return None
    vocabulary = model.register_artifact("tokenizer.tokenizer_json", section.tokenizer_json)
    settings = model.register_artifact("tokenizer.tokenizer_config", section.get("tokenizer_config"))
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(vocabulary, Path(folder) / HUGGING_FACE)
        shutil.copyfile(settings, Path(folder) / SETTINGS)
        return AutoTokenizer(pretrained_model_name=folder, use_fast=True)
