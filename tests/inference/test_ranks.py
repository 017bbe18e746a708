"""Processes that serve one model find each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_steerlm.core.errors import ConfigError
from nemo_steerlm.inference.ranks import Ranks

ROOT = Path(__file__).parents[2]
PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK")


@pytest.mark.distributed
def test_nobody_else_can_take_the_port_where_processes_meet() -> None:
    environment = {key: value for key, value in os.environ.items() if key not in PLACE} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.inference.meeting_ranks"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("True\n[0, 1]\n", 0), done.stderr[-3000:]


@pytest.mark.parametrize("given", [{}, {"MASTER_ADDR": "127.0.0.1"}, {"MASTER_PORT": "29500"}])
def test_several_nodes_have_to_be_told_where_they_meet(monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> None:
    for name in PLACE:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="set MASTER_ADDR, MASTER_PORT and NODE_RANK on every node"):
        Ranks(devices=1, nodes=2)
