"""The embedded engine under a transformers that NeMo does not allow, in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.environments import environment
from tests.inputs import STORIES

ROOT = Path(__file__).parents[2]
SERVE = ["msgspec", "pydantic", "safetensors", "sentencepiece", "tokenizers", "omegaconf", "protobuf", "zstandard", "numpy>=2"]


@pytest.mark.skipif(not os.environ.get("STEERLM_TEST_ENGINES"), reason="runs with make test-engines")
@pytest.mark.timeout(3600)
def test_the_embedded_engine_has_the_logits_of_transformers_5() -> None:
    python = environment("transformers-5.24.0-torch-2.14.1", ["transformers==5.24.0", "torch==2.14.1", *SERVE])
    command = [str(python), str(ROOT / "tests" / "inference" / "newest_transformers.py"), str(STORIES)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["transformers"].startswith("5.")
    assert max(found["differences"]) < 1e-4
