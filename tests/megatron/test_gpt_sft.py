"""A model can be built inside any program without changing what that program's children see."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nemo_steerlm.megatron.gpt_sft import RENDEZVOUS

pytestmark = pytest.mark.megatron


def test_building_a_model_leaves_no_launcher_in_the_environment(base_nemo: Path) -> None:
    assert base_nemo.exists()
    assert not RENDEZVOUS & set(os.environ)
