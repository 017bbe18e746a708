"""The whole loop on real trees and a real (tiny) Llama: run undisturbed, run and killed in every stage, and all that it leaves."""

from __future__ import annotations

import itertools
import json
import os
import re
import select
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from nemo_steerlm.core.processes import ChildProcess
from nemo_steerlm.pipeline.artifacts import WorkDirectory
from tests.pipeline.tiny import STAGES, STEERLM, manifest_file

pytestmark = [
    pytest.mark.megatron,
    pytest.mark.timeout(1800),
]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return manifest_file(tmp_path_factory.mktemp("manifest"))


def steerlm(*arguments):
    return subprocess.run([*STEERLM, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def undisturbed(manifest, tmp_path_factory):
    """A work directory that one run filled."""
    work = WorkDirectory(tmp_path_factory.mktemp("undisturbed"))
    done = steerlm("run", manifest, "--workdir", work.path)
    assert done.returncode == 0, done.stderr
    return work


KILLS = {
    # Stage: how far it is, and who gets SIGKILL. Who is left has to end by itself.
    "prepare": (1, "runner and stage"),
    "train-value": (3, "all"),  # between two checkpoints
    "annotate": (1, "runner"),
    "train-steer": (1, "runner and stage"),  # before the first checkpoint
    "evaluate": (1, "runner and stage"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A work directory whose run was killed in the middle of every stage, and then run to its end; and what that run printed."""
    manifest = manifest_file(tmp_path_factory.mktemp("manifest"), annotate={"servers": {"replicas": 1}})
    work = WorkDirectory(tmp_path_factory.mktemp("killed"))
    for stage, (steps, who) in KILLS.items():
        kill_in(stage, steps, who, manifest, work)
        assert work.success(stage) is None, f"{stage} had ended before it was killed"
    done = steerlm("run", manifest, "--workdir", work.path)
    assert done.returncode == 0, done.stderr
    return work, done.stdout


def kill_in(stage, steps, who, manifest, work):
    """Run until ``stage`` has said ``steps`` times how far it is, kill, and see that nothing of the run is left."""
    log = work.log(stage)
    log.parent.mkdir(exist_ok=True)
    log.touch()  # tail looks once a second at a file that it did not find at first, and at once at any other
    with ChildProcess([*STEERLM, "run", str(manifest), "--workdir", str(work.path)], log=work.path / "killed.log") as runner:
        with subprocess.Popen(["tail", "-F", "-n", "+1", str(log)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as lines:
            said = (line for line in lines.stdout if '"progress"' in line)
            assert len(list(itertools.islice(said, steps))) == steps
            family = descendants(runner.pid)
            killed = {
                "runner": [runner.pid],
                "runner and stage": [runner.pid, *(pid for pid, command in family.items() if f"\0stage\0{stage}\0" in command)],
                "all": [runner.pid, *family],
            }[who]
            watched = [os.pidfd_open(pid) for pid in family]
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            lines.terminate()
        assert runner.wait() == 128 + signal.SIGKILL
    for process, command in zip(watched, family.values(), strict=True):
        ended, _, _ = select.select([process], [], [], 60)
        assert ended, f"still running: {command}"
        os.close(process)


def descendants(pid):
    """Process id to command line of all that ``pid`` started and what those started."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    found = {}
    for child in (int(number) for file in children for number in file.read_text().split()):
        found |= {child: Path(f"/proc/{child}/cmdline").read_text(), **descendants(child)}
    return found


@pytest.mark.slow
def test_a_run_killed_in_every_stage_ends_as_an_undisturbed_one(undisturbed, finished):
    work, printed = finished
    assert [f"{stage}: already done" in printed for stage in STAGES] == [True] * 4 + [False]
    for stage in ("prepare", "annotate"):
        assert work.success(stage).digests() == undisturbed.success(stage).digests(), stage
    for stage in ("train-value", "train-steer"):
        assert losses(work, stage) == losses(undisturbed, stage), stage
        assert work.success(stage).digests()["hf"] == undisturbed.success(stage).digests()["hf"], stage
    mine, theirs = (samples(w) for w in (work, undisturbed))
    assert [s["answer"] for s in mine] == [s["answer"] for s in theirs]
    # How requests meet in a batch changes the last digits of what is computed.
    assert [s["read"] for s in mine] == [pytest.approx(s["read"], abs=1e-4) for s in theirs]


def losses(work, stage):
    content = json.loads((work.folder(stage) / "metrics.json").read_text())
    return [step["loss"] for step in content["train"]], [step["loss"] for step in content["validation"]]


def samples(work):
    return [json.loads(line) for line in (work.folder("evaluate") / "samples.jsonl").open()]


def test_every_stage_left_what_it_promises(undisturbed):
    work = undisturbed
    for stage in STAGES:
        assert work.success(stage), stage
    for role in ("value", "steer"):
        described = json.loads((work.folder(f"train-{role}") / "hf" / "steerlm.json").read_text())
        assert described["kind"] == role
        assert described["attributes"]["languages"] == ["en"]
    page = (work.folder("evaluate") / "report.html").read_text()
    assert "<svg" in page
    assert not re.search(r"(src|href)=.?https?:", page), "the page must not fetch anything"


def test_predictions_replace_human_labels_and_say_whose_they_are(undisturbed):
    work = undisturbed
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


def test_a_second_run_does_nothing(manifest, undisturbed):
    before = (undisturbed.folder("evaluate") / "_SUCCESS.json").read_bytes()
    again = steerlm("run", manifest, "--workdir", undisturbed.path)
    assert again.returncode == 0, again.stderr
    assert all(f"{stage}: already done" in again.stdout for stage in STAGES)
    assert (undisturbed.folder("evaluate") / "_SUCCESS.json").read_bytes() == before
    assert "control error " in again.stdout


@pytest.mark.slow
def test_a_bootstrap_round_trains_on_what_the_model_wrote_and_the_value_model_read(undisturbed, tmp_path):
    shutil.copytree(undisturbed.path, tmp_path / "work")
    work = WorkDirectory(tmp_path / "work")
    # What a model of 260,000 parameters is labelled with is always the same: nothing is required of it.
    # It hardly ever ends an answer either; where all tokens are about as likely, one in a hundred does.
    sampling = {"prompts": 2, "samplesPerPrompt": 6, "maxTokens": 100, "temperature": 100, "topK": 0}
    bootstrap = {"rounds": 1, "requireAny": True, **sampling, "mixOriginal": 0.5, "train": {"maxSteps": 3, "learningRate": 1e-3}}
    done = steerlm("run", manifest_file(tmp_path, bootstrap=bootstrap), "--workdir", work.path)
    assert done.returncode == 0, done.stderr
    assert all(f"{stage}: already done" in done.stdout for stage in STAGES[:-1])
    fingerprint = json.loads((work.folder("train-value") / "hf" / "steerlm.json").read_text())["fingerprint"]
    records = [json.loads(line) for line in (work.folder("bootstrap-1-sample") / "train.jsonl").open()]
    sampled = [record for record in records if "asked_label" in record["conversations"][-1]]
    assert 4 <= len(sampled) <= 12
    assert len(records) - len(sampled) == round(len(sampled) / 2)
    assert work.success("bootstrap-1-sample").metrics["kept"] == len(sampled)
    for record in sampled:
        *asked, answer = record["conversations"]
        assert (asked[-1]["from"], answer["from"], answer["label_source"]) == ("User", "Assistant", fingerprint)
    described = [json.loads((work.folder(stage) / "hf" / "steerlm.json").read_text()) for stage in ("train-steer", "bootstrap-1-train")]
    assert [d["kind"] for d in described] == ["steer", "steer"]
    assert described[0]["fingerprint"] != described[1]["fingerprint"]
    assert len(losses(work, "bootstrap-1-train")[0]) == 3
    # Both models were evaluated on the same prompts, and the better one is what servers take.
    assert {s["model"] for s in samples(work)} == {"train-steer", "bootstrap-1-train"}
    best = json.loads((work.folder("evaluate") / "metrics.json").read_text())["best"]
    assert work.model("steer") == work.folder(best) / "hf"
    assert f"{best} has the smallest control error" in done.stdout


def test_a_stage_tells_an_operator_what_it_found(manifest, undisturbed, tmp_path):
    work = undisturbed
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
