"""The pipelines of examples/ are whole: each can be planned without its data, its model or a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "pipelines"
ROUND = ["bootstrap-1-sample", "bootstrap-1-train"]
STAGES = ["prepare", "train-value", "annotate", "train-steer"]
WIDE = "  1x4 devices, TP 2, PP 1, DP 2"


@pytest.mark.parametrize(
    ("name", "rounds", "width"),
    [("oasst_llama2_7b", ROUND, WIDE), ("oasst_tiny", [], ""), ("quickstart", [], ""), ("bootstrap", ROUND, "")],
)
def test_a_dry_run_names_every_stage_and_starts_nothing(name, rounds, width, tmp_path):
    command = [sys.executable, "-m", "nemo_steerlm.cli.main", "run", str(FOLDER / f"{name}.yaml"), "--dry-run"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "absent")}
    done = subprocess.run(command, cwd=tmp_path, env=offline, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.partition("\n\n")[0].splitlines()
    assert [line.split()[:2] for line in lines] == [[stage, "waiting"] for stage in [*STAGES, *rounds, "evaluate"]]
    trainings = [line for line in lines if "train" in line.split()[0]]
    assert all(line.endswith(f"--workdir {tmp_path / 'runs' / name.replace('_', '-')}{width}") for line in trainings)
    assert not list(tmp_path.iterdir())
