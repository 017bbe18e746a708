"""What a training says while it runs, without one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from nemo_steerlm.megatron.machine import Machine
from nemo_steerlm.training.checkpoints import TrainingState
from nemo_steerlm.training.config import compose
from nemo_steerlm.training.reporting import Reporter
from nemo_steerlm.training.settings import check
from tests.environments import environment

pytestmark = pytest.mark.megatron


@pytest.mark.slow
def test_mlflow_gets_every_step_and_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client lives in an environment of its own, whose packages come after this one's."""
    [packages] = environment("mlflow-2.22", ["mlflow-skinny==2.22.0"]).parent.parent.glob("lib/*/site-packages")
    monkeypatch.setattr(sys, "path", [*sys.path, str(packages)])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    cfg = compose(["exp_manager.create_mlflow_logger=true", "exp_manager.create_tensorboard_logger=false"])
    check(cfg, Machine(cuda=False))
    reporter = Reporter(cfg, tmp_path, "train-value", 2, active=True)
    for step, loss in ((1, 2.5), (2, 1.5)):
        reporter.step({"step": step, "loss": loss, "tokens": 100, "seconds": 1.0})
    reporter.validation(2, {"loss": 0.5, "attributes": {}})
    reporter.finish(TrainingState(fingerprint={}))
    for name, wanted in (("train/loss", [(1, 2.5), (2, 1.5)]), ("val/loss", [(2, 0.5)])):
        [file] = (tmp_path / "mlruns").glob(f"*/*/metrics/{name}")
        logged = [line.split() for line in file.read_text().splitlines()]
        assert [(int(step), float(value)) for _, value, step in logged] == wanted


def test_a_progress_line_says_how_fast_it_is_and_how_long_it_takes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cfg = compose(["steerlm.progress=true", "exp_manager.create_tensorboard_logger=false"])
    reporter = Reporter(cfg, tmp_path, "train-value", 4, active=True)
    for step, seconds in ((1, 1.0), (2, 3.0)):
        reporter.step({"step": step, "loss": 2.5, "tokens": 100, "seconds": seconds})
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["done"], line["tokens_per_second"], line["seconds_left"]) for line in lines] == [(1, 100.0, 3.0), (2, 50.0, 4.0)]
    assert "mfu" not in lines[0]
    reporter = Reporter(cfg, tmp_path, "train-value", 4, active=True, peak=1e12)
    for seconds in (1.0, 3.0):
        reporter.step({"step": 1, "loss": 2.5, "tokens": 100, "seconds": seconds}, 5e11)
    assert [json.loads(line)["mfu"] for line in capsys.readouterr().out.splitlines()] == [0.5, 0.25]
