"""The whole loop on real trees and a real (tiny) Llama: run, killed with -9 in the middle, run again, and all that it leaves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nemo_steerlm.pipeline.artifacts import WorkDirectory
from nemo_steerlm.pipeline.processes import Child

DATA = Path(__file__).parents[3] / "shared" / "data"
EXAMPLE = Path(__file__).parents[2] / "examples" / "pipelines" / "oasst_tiny.yaml"
STEERLM = [sys.executable, "-m", "nemo_steerlm.cli.main"]
STAGES = ("prepare", "train-value", "annotate", "train-steer", "evaluate")

pytestmark = [
    pytest.mark.megatron,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not DATA.exists(), reason=f"no real inputs at {DATA}"),
]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """The example, made smaller still."""
    content = yaml.safe_load(EXAMPLE.read_text())
    spec = content["spec"]
    spec["data"]["oasst"]["path"] = str(DATA / "oasst1_en_validation.trees.jsonl")
    spec["model"]["base"] = str(DATA / "stories260K")
    for part in ("trainValue", "trainSteer"):
        spec[part] |= {"maxSteps": 3, "validateEvery": 3, "limitValidationBatches": 1, "globalBatchSize": 4, "microBatchSize": 2}
    spec["evaluate"] |= {"attributes": ["quality"], "samplesPerLevel": 2, "maxTokens": 8}
    path = tmp_path_factory.mktemp("manifest") / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def steerlm(*arguments):
    return subprocess.run([*STEERLM, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def finished(manifest, tmp_path_factory):
    """A work directory whose run was killed while it annotated, and then run again to its end."""
    work = tmp_path_factory.mktemp("work")
    command = [*STEERLM, "run", str(manifest), "--workdir", str(work)]
    first = subprocess.run([*command, "--until", "train-value"], capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    with Child([*STEERLM, "run", str(manifest), "--workdir", str(work)], log=work / "killed.log") as killed:
        log = WorkDirectory(work).log("annotate")
        with subprocess.Popen(["tail", "-F", "-n", "+1", str(log)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as lines:
            assert any('"progress"' in line for line in lines.stdout)
            killed._process.send_signal(signal.SIGKILL)
            lines.terminate()
        assert killed.wait() == 128 + signal.SIGKILL
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "train-value: already done" in again.stdout
    return work, again.stdout


def test_every_stage_left_what_it_promises(finished):
    work = WorkDirectory(finished[0])
    for stage in STAGES:
        assert work.success(stage), stage
    for role in ("value", "steer"):
        described = json.loads((work.folder(f"train-{role}") / "hf" / "steerlm.json").read_text())
        assert described["kind"] == role
        assert described["attributes"]["languages"] == ["en"]
    page = (work.folder("evaluate") / "report.html").read_text()
    assert "<svg" in page
    assert not re.search(r"(src|href)=.?https?:", page), "the page must not fetch anything"


def test_predictions_replace_human_labels_and_say_whose_they_are(finished):
    work = WorkDirectory(finished[0])
    fingerprint = json.loads((work.folder("train-value") / "hf" / "steerlm.json").read_text())["fingerprint"]
    records = [json.loads(line) for line in (work.folder("annotate") / "train.jsonl").open()]
    assert records
    for record in records:
        assert record["type"] == "VALUE_TO_TEXT"
        for turn in record["conversations"]:
            if turn["from"] == "User":
                assert "label" not in turn
            else:
                assert turn["label_source"] == fingerprint
                assert turn["label"].startswith("quality:")


def test_a_second_run_does_nothing(manifest, finished):
    before = (finished[0] / "evaluate" / "_SUCCESS.json").read_bytes()
    again = steerlm("run", manifest, "--workdir", finished[0])
    assert again.returncode == 0, again.stderr
    assert all(f"{stage}: already done" in again.stdout for stage in STAGES)
    assert (finished[0] / "evaluate" / "_SUCCESS.json").read_bytes() == before
    assert "Steering: what was asked for" in again.stdout


def test_what_was_killed_ends_with_the_digests_of_an_undisturbed_run(manifest, finished):
    work = WorkDirectory(finished[0])
    before = work.success("annotate").digests()
    again = steerlm("run", manifest, "--workdir", work.path, "--from", "annotate", "--until", "annotate")
    assert again.returncode == 0, again.stderr
    assert work.success("annotate").digests() == before


def test_a_stage_tells_an_operator_what_it_found(manifest, finished, tmp_path):
    work = WorkDirectory(finished[0])
    result = tmp_path / "termination-log"
    stage = subprocess.run(
        [*STEERLM, "stage", "prepare", "--manifest", str(manifest), "--workdir", str(work.path)],
        env={**os.environ, "STEERLM_TERMINATION_LOG": str(result), "STEERLM_FILES": str(manifest.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert stage.returncode == 0, stage.stderr
    told = json.loads(result.read_text())
    assert told["cached"] is True
    assert told["inputHash"] == work.success("prepare").input_hash


def test_a_wrong_stage_name_and_a_missing_input_are_one_line(manifest, tmp_path):
    wrong = steerlm("run", manifest, "--workdir", tmp_path, "--from", "anotate")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "did you mean annotate?" in wrong.stderr
    early = steerlm("stage", "annotate", "--manifest", manifest, "--workdir", tmp_path)
    assert (early.returncode, early.stderr.count("\n")) == (2, 1)
    assert "which has not finished" in early.stderr
