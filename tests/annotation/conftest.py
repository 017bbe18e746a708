"""The input of most tests of the annotator."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.annotation.running import write_conversations


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_conversations(tmp_path / "in.jsonl", 40)
