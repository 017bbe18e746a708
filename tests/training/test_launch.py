"""The exit code and the sentence of the rank that failed come through torchrun, the stage and the operator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from steerlm_operator.readings import read_job
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from nemo_steerlm.core.environment import ERROR_FILE
from nemo_steerlm.core.exits import recorded_error, run_and_exit
from nemo_steerlm.pipeline.artifacts import WorkDirectory
from nemo_steerlm.pipeline.manifest import parse
from nemo_steerlm.pipeline.run_context import Run
from nemo_steerlm.pipeline.stages import find, stages
from nemo_steerlm.pipeline.steps.child import ChildFailedError, call
from nemo_steerlm.pipeline.steps.train import launcher
from nemo_steerlm.pipeline.train_spec import ParallelSpec
from nemo_steerlm.training.launch import RankFailedError, first_failure, main
from tests.operator.test_readings import LIMIT, NOW, job, pod
from tests.pipeline.manifests import SMALLEST

SCRIPT = str(Path(__file__).with_name("failing_rank.py"))
SENTENCES = {
    2: "unknown key",
    65: "train.jsonl:3: no label",
    69: "no server",
    75: "come back",
    78: "precision=16",
    1: "ValueError: a bug",
    137: "Signal 9 (SIGKILL) received by PID",
}


def test_the_launcher_ends_as_the_rank_that_a_signal_ended():
    """It said nothing itself, and torchrun stops the other one."""
    with pytest.raises(RankFailedError) as error:
        main(["--standalone", "--nproc-per-node=2", "--monitor-interval=0.05", SCRIPT, "137"])
    assert error.value.exit_code == 137
    assert str(error.value).startswith(f"rank 1: {SENTENCES[137]}")


@pytest.mark.parametrize("code", SENTENCES)
def test_the_launcher_takes_code_and_sentence_of_each_kind_of_failure(tmp_path, code):
    """What a rank that fails leaves behind, read as torchrun reads it, beside the rank that is stopped for it."""
    file = tmp_path / "error.json"
    told = {**os.environ, "RANK": "1", ERROR_FILE: str(file)}
    done = subprocess.run([sys.executable, SCRIPT, str(code)], env=told, capture_output=True, check=False)
    failed = ProcessFailure(local_rank=1, pid=1, exitcode=done.returncode, error_file=str(file))
    error = first_failure({0: failure(tmp_path, 0, -15), 1: failed})
    assert error.exit_code == code
    assert str(error).startswith(f"rank 1: {SENTENCES[code]}")


def failure(tmp_path, rank, exitcode, sentence="", time=0):
    file = tmp_path / f"{rank}.json"
    if sentence:
        file.write_text(json.dumps({"message": {"message": sentence, "extraInfo": {"timestamp": str(time)}}}))
    return ProcessFailure(local_rank=rank, pid=rank, exitcode=exitcode, error_file=str(file))


def test_a_rank_that_says_what_is_wrong_is_the_cause_of_those_that_do_not(tmp_path):
    failures = {
        0: failure(tmp_path, 0, 1, "RuntimeError: connection reset", 10),
        1: failure(tmp_path, 1, -15),
        2: failure(tmp_path, 2, 65, "later", 12),
        3: failure(tmp_path, 3, 65, "bad record", 11),
    }
    assert (str(first_failure(failures)), first_failure(failures).exit_code) == ("rank 3: bad record", 65)
    del failures[2], failures[3]
    assert str(first_failure(failures)) == "rank 0: RuntimeError: connection reset"


def test_a_stage_hands_code_and_sentence_on_to_the_operator_s_condition(tmp_path):
    pipeline = parse(SMALLEST, "m")
    stage = find(stages(pipeline), "train-value")
    run = Run(pipeline=pipeline, stage=stage, work=WorkDirectory(tmp_path), manifest=tmp_path / "m.yaml", servers={})
    *torchrun, _, _ = launcher(ParallelSpec(devices=2))
    with pytest.raises(ChildFailedError) as error:
        call("trainer", run, [*torchrun, SCRIPT, "65"])
    assert error.value.exit_code == 65
    reading = read_job(job("Failed", "BackoffLimitExceeded", LIMIT), [pod(65, message=f"steerlm: {error.value}")], NOW)
    assert (reading.reason, reading.permanent) == ("BadData", True)
    assert reading.message.endswith("rank 1: train.jsonl:3: no label")


def test_one_process_needs_no_launcher():
    assert launcher(ParallelSpec()) == ["nemo_steerlm.training.train"]


def test_an_error_is_written_where_the_environment_says(tmp_path, monkeypatch, capsys):
    def fail():
        raise ValueError("a bug")

    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "error.json"))
    with pytest.raises(ValueError, match="a bug"):
        run_and_exit(fail)
    assert recorded_error(tmp_path / "error.json") == "ValueError: a bug"
    assert recorded_error(tmp_path / "none.json") is None
    (tmp_path / "error.json").write_text("{")
    assert recorded_error(tmp_path / "error.json") is None
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "no" / "folder"))
    with pytest.raises(ValueError, match="a bug"):
        run_and_exit(fail)
