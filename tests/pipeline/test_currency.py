"""Whether a stage is done, what an interrupted one goes on from, and what becomes of folders that other work left."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import subprocess
import sys

import pytest
import yaml

from nemo_steerlm.core import environment
from nemo_steerlm.core.errors import ConfigError, SteerLMError, TryAgainError, UsageError
from nemo_steerlm.pipeline import artifacts, local, running
from nemo_steerlm.pipeline.artifacts import Begun, WorkDirectory
from nemo_steerlm.pipeline.currency import differences, examine, hashes, identity_of
from nemo_steerlm.pipeline.manifest import load
from nemo_steerlm.pipeline.stages import stages
from tests.inputs import OASST, STORIES
from tests.pipeline.manifests import with_field

STEERLM = [sys.executable, "-m", "nemo_steerlm.cli.main"]


@pytest.fixture
def project(tmp_path):
    """A manifest with its inputs, and a work directory in which stages can be finished by hand."""
    return Project(tmp_path)


class Project:
    def __init__(self, folder):
        self.manifest = folder / "pipeline.yaml"
        self.work = WorkDirectory(folder / "work")
        (folder / "trees.jsonl").write_text("trees")
        (folder / "base").mkdir()
        (folder / "base" / "config.json").write_text("{}")
        self.write()

    def write(self, path="metadata.name", value="small"):
        self.manifest.write_text(yaml.safe_dump(with_field(path, value)))

    @property
    def pipeline(self):
        return load(self.manifest)

    def stage(self, name):
        return next(stage for stage in stages(self.pipeline) if stage.name == name)

    def begin(self, name):
        stage = self.stage(name)
        identity = identity_of(stage, self.work, self.manifest.parent)
        wanted, *equal = hashes(self.pipeline, stage, identity)
        begun = Begun(input_hash=wanted, identity=identity)
        self.work.begin(name, begun, equal=equal, other=lambda before: differences(before, identity))
        return begun

    def finish(self, name, content="result"):
        begun = self.begin(name)
        folder = self.work.folder(name)
        for output in self.stage(name).outputs:
            file = folder / output if "." in output else folder / output / "file"
            file.parent.mkdir(exist_ok=True)
            file.write_text(content)
        return self.work.finish(self.stage(name), begun, metrics={}, versions={"nemo_steerlm": "0.2.0"}, seconds=1)

    def states(self):
        return {state.stage.name: (state.state, state.reason) for state in local.stage_states(self.manifest, self.work.path)}


def test_a_plan_tells_done_outdated_interrupted_and_waiting(project):
    project.finish("prepare")
    project.finish("train-value")
    project.begin("annotate")
    states = project.states()
    assert [state for state, _ in states.values()] == ["done", "done", "interrupted", "waiting", "waiting"]
    project.write("spec.trainValue.learningRate", 1e-3)
    states = project.states()
    assert states["prepare"] == ("done", "")
    assert states["train-value"] == ("outdated", "trainValue.learningRate was its default, is 0.001")
    command = [*STEERLM, "status", project.manifest, "--workdir", project.work.path]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "outdated" in shown.stdout
    assert "(trainValue.learningRate was its default, is 0.001)" in shown.stdout


def test_an_interrupted_stage_that_would_be_another_now_waits(project):
    project.finish("prepare")
    project.begin("train-value")
    assert project.states()["train-value"][0] == "interrupted"
    project.write("spec.trainValue.seed", 9)
    assert project.states()["train-value"][0] == "waiting"


def test_a_file_with_another_content_outdates_what_reads_it(project):
    project.finish("prepare")
    (project.manifest.parent / "trees.jsonl").write_text("other trees")
    assert project.states()["prepare"] == ("outdated", "trees.jsonl has another content")
    (project.manifest.parent / "trees.jsonl").unlink()
    state, reason = project.states()["prepare"]
    assert (state, "no such file" in reason) == ("outdated", True)


def test_what_reads_an_outdated_stage_is_outdated_until_that_is_done_again(project):
    for name in ("prepare", "train-value", "annotate"):
        project.finish(name)
    project.write("spec.trainValue.seed", 9)
    assert project.states()["annotate"] == ("outdated", "it reads train-value, to be done first")
    project.finish("train-value")  # with the same result
    assert project.states()["annotate"][0] == "done"
    project.write("spec.trainValue.seed", 10)
    project.finish("train-value", "another model")
    assert project.states()["annotate"] == ("outdated", "hf of train-value is another")


def test_outputs_that_are_gone_are_made_again(project):
    project.finish("prepare")
    (project.work.folder("prepare") / "value_val.jsonl").unlink()
    assert project.states()["prepare"][0] == "waiting"
    project.begin("prepare")
    assert [path.name for path in project.work.folder("prepare").iterdir()] == ["_RUNNING.json"]


def as_0_1_0(project, name, file):
    """Make the marker what version 0.1.0 would have written."""
    stage = project.stage(name)
    _, old = hashes(project.pipeline, stage, identity_of(stage, project.work, project.manifest.parent))
    path = project.work.folder(name) / file
    content = json.loads(path.read_text())
    content["inputHash"] = old
    del content["identity"]
    if file == artifacts.SUCCESS:
        content["versions"]["nemo_steerlm"] = "0.1.0"
    path.write_text(json.dumps(content))


def test_what_version_0_1_0_finished_stays_finished(project):
    project.finish("prepare")
    project.finish("train-value")
    as_0_1_0(project, "train-value", artifacts.SUCCESS)
    assert project.states()["train-value"] == ("done", "")
    project.write("spec.trainValue.seed", 9)
    assert project.states()["train-value"] == ("outdated", "fields or inputs have changed since nemo_steerlm 0.1.0 finished it")


def test_a_training_that_version_0_1_0_was_interrupted_in_goes_on(project):
    project.finish("prepare")
    project.begin("train-value")
    as_0_1_0(project, "train-value", artifacts.RUNNING)
    checkpoint = project.work.folder("train-value") / "checkpoint"
    checkpoint.write_text("days of work")
    assert project.states()["train-value"][0] == "interrupted"
    project.begin("train-value")
    assert checkpoint.read_text() == "days of work"


def test_what_an_unknown_version_finished_is_named(project):
    project.finish("prepare")
    path = project.work.folder("prepare") / artifacts.SUCCESS
    content = json.loads(path.read_text())
    del content["identity"]
    path.write_text(json.dumps({**content, "inputHash": "0" * 64, "versions": {"nemo_steerlm": "0.0.9"}}))
    assert project.states()["prepare"] == ("outdated", "it was finished by another version's rules: nemo_steerlm 0.0.9")
    project.begin("prepare")
    assert (project.work.path / "superseded" / "prepare-1" / artifacts.SUCCESS).exists()


def test_the_checkpoints_of_an_interrupted_training_outlive_a_raised_format(project, monkeypatch, package_log):
    project.finish("prepare")
    project.begin("train-value")
    (project.work.folder("train-value") / "checkpoint").write_text("days of work")
    monkeypatch.setattr("nemo_steerlm.pipeline.stages.train.FORMAT", 2)
    for number in (1, 2):
        project.begin("train-value")
        monkeypatch.setattr("nemo_steerlm.pipeline.stages.train.FORMAT", 2 + number)
        assert len(list((project.work.path / "superseded").iterdir())) == number
    assert (project.work.path / "superseded" / "train-value-1" / "checkpoint").read_text() == "days of work"
    assert "moved to" in "\n".join(package_log)


def test_a_finished_stage_of_another_format_says_so(project, monkeypatch):
    project.finish("prepare")
    now = project.stage("prepare").format
    monkeypatch.setattr("nemo_steerlm.pipeline.stages.prepare.FORMAT", now + 1)
    reason = f"it was finished by another version's rules: format {now}, this version gives format {now + 1}"
    assert project.states()["prepare"] == ("outdated", reason)


def test_a_folder_left_by_other_work_is_emptied_and_the_log_says_why(project, package_log):
    project.begin("prepare")
    left = project.work.folder("prepare") / "half.jsonl"
    left.write_text("half")
    project.begin("prepare")
    assert left.exists(), "the same work goes on"
    project.write("spec.data.onError", "skip")
    project.begin("prepare")
    assert [path.name for path in project.work.folder("prepare").iterdir()] == ["_RUNNING.json"]
    assert "data.onError was its default, is 'skip'" in "\n".join(package_log)
    assert not (project.work.path / "superseded").exists()


def test_a_folder_that_is_nobody_s_is_moved_aside(project):
    folder = project.work.folder("prepare")
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    project.begin("prepare")
    assert (project.work.path / "superseded" / "prepare-1" / "notes.txt").read_text() == "mine"


def test_a_salt_has_a_finished_stage_done_again_once(project, monkeypatch):
    project.finish("prepare")
    monkeypatch.setenv(environment.SALT, "again")
    assert project.states()["prepare"] == ("outdated", "it was asked to be done again")
    project.finish("prepare")
    assert project.states()["prepare"][0] == "done"


def test_an_input_that_has_not_finished_is_permanent_and_one_that_is_known_to_be_done_is_tried_again(project, monkeypatch):
    with pytest.raises(UsageError, match="which has not finished"):
        running.run_stage("train-value", project.manifest, project.work.path)
    monkeypatch.setenv(environment.INPUTS_FINISHED, "1")
    monkeypatch.setattr(running, "VISIBLE_SECONDS", 0.0)
    with pytest.raises(TryAgainError, match="known to be done"):
        running.run_stage("train-value", project.manifest, project.work.path)


def test_locks_are_opened_for_reading_as_shared_ones_on_nfs_need_it(project):
    for shared in (True, False):
        with project.work.lock("annotate", shared=shared) as descriptor:
            assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR


def test_a_file_system_without_locks_is_a_configuration_that_says_what_to_mount(project, monkeypatch):
    def refused(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(ConfigError, match="-o flock"), project.work.lock("annotate"):
        pass


class Told(local.Listener):
    """Notes what the executor says."""

    def __init__(self):
        self.told = []

    def started(self, stage):
        self.told.append((stage.name, "started"))

    def finished(self, stage, seconds, *, cached):
        self.told.append((stage.name, "cached" if cached else "done"))


@pytest.mark.parametrize(
    ("from_stage", "until", "told", "left"),
    [
        (None, "train-value", [("prepare", "cached"), ("train-value", "cached")], {"prepare", "train-value"}),
        ("train-value", "prepare", [("prepare", "cached")], {"prepare", "train-value"}),
        ("prepare", "train-value", [("prepare", "started")], {"train-value"}),
        ("annotate", "annotate", [("prepare", "cached"), ("train-value", "cached"), ("annotate", "started")], {"prepare", "train-value"}),
    ],
)
def test_stages_from_the_one_that_is_named_run_again_up_to_the_last_that_is_wanted(project, from_stage, until, told, left):
    """None of them gets far: the data are no trees, and the folder of the value model holds none. What is to be kept is kept."""
    for name in ("prepare", "train-value", "annotate"):
        project.finish(name)
    listener = Told()
    with contextlib.suppress(SteerLMError):
        local.run_pipeline(project.manifest, project.work.path, from_stage=from_stage, until_stage=until, listener=listener)
    assert listener.told == told
    done = {name for name in ("prepare", "train-value") if project.work.success(name)}
    assert done == left


def test_every_stage_from_the_one_that_is_named_begins_with_nothing(project, monkeypatch):
    """Also one that would be found done, because the stages before it left what they had left before."""
    monkeypatch.setattr(local, "STEERLM", (sys.executable, "-c", "pass"))
    for name in ("prepare", "train-value"):
        project.finish(name)
    local.run_pipeline(project.manifest, project.work.path, from_stage="prepare", until_stage="train-value")
    assert [project.work.folder(name).exists() for name in ("prepare", "train-value")] == [False, False]


def test_an_unknown_stage_is_refused_before_anything_is_forgotten(project):
    project.finish("prepare")
    for names in ({"from_stage": "prepar"}, {"until_stage": "prepar"}):
        with pytest.raises(UsageError, match="did you mean prepare"):
            local.run_pipeline(project.manifest, project.work.path, **names)
    assert project.states()["prepare"][0] == "done"


@pytest.mark.slow
def test_a_run_from_a_stage_does_it_again_although_it_is_done(tmp_path):
    manifest = with_field("spec.data.oasst", {"path": str(OASST), "limit": 8})
    manifest["spec"]["model"] = {"base": str(STORIES), "maxSequenceLength": 512}
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump(manifest))
    command = [*STEERLM, "run", file, "--workdir", tmp_path / "work", "--until", "prepare"]

    def run(*more):
        return subprocess.run([*command, *more], capture_output=True, text=True, check=True).stdout

    assert "prepare: done" in run()
    assert "prepare: already done" in run()
    assert "prepare: done" in run("--from", "prepare")
    assert "prepare: already done" in run("--from", "train-value")


def test_the_model_of_the_last_round_is_the_one_to_serve(project):
    work = project.work
    assert work.model("steer") is None
    for name in ("train-value", "train-steer", "bootstrap-2-train", "bootstrap-10-train"):
        (work.folder(name) / "hf").mkdir(parents=True)
    assert work.model("value") == work.folder("train-value") / "hf"
    assert work.model("steer") == work.folder("bootstrap-10-train") / "hf"


def test_examining_a_stage_that_was_never_begun_reads_nothing(project):
    (project.manifest.parent / "trees.jsonl").unlink()
    found = examine(project.pipeline, project.stage("prepare"), project.work, project.manifest.parent)
    assert (found.state, found.identity) == ("waiting", None)
    assert not project.work.path.exists()
