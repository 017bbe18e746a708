"""What people and upgrades change while a pipeline is on its way: its result is always that of the spec it has in the end."""

from __future__ import annotations

import json

import pytest
from steerlm_operator import names
from steerlm_operator.config import OperatorConfig
from steerlm_operator.resources import settings

from tests.operator.lifetime import Lifetime


@pytest.fixture
def life():
    """A pipeline whose prepare and train-value are done."""
    made = Lifetime()
    made.begin(shards=2, rounds=0, nodes=1, done=2)
    made.settle()
    yield made
    made.loop.close()


def stages(life):
    return {stage["name"]: stage for stage in life.status()["stages"]}


def attempts(life):
    return {name: stage["attempt"] for name, stage in stages(life).items()}


def change(life, **spec):
    """Suspend, edit, resume, as the schema demands."""
    life.edit(suspend=True)
    life.settle()
    life.edit(**spec)
    life.settle()
    life.done = {}  # what is done may be done again from here
    life.terminal = None
    life.edit(suspend=False)
    life.settle()


def test_a_stage_that_was_done_is_done_again_when_its_fields_change(life):
    assert stages(life)["train-value"]["phase"] == "Succeeded"
    change(
        life,
        trainValue={"globalBatchSize": 8, "learningRate": 1e-3},
        data={"records": {"train": "other.jsonl", "validation": "v.jsonl"}},
    )
    found = stages(life)
    assert (found["prepare"]["phase"], found["prepare"]["attempt"]) == ("Queued", 2)
    assert found["train-value"]["phase"] == "Pending"
    assert "SpecChanged" in life.world.events
    job = next(job for job in life.world.jobs() if job["metadata"]["labels"][names.STAGE] == "prepare")
    volume = next(v for v in job["spec"]["template"]["spec"]["volumes"] if v["name"] == "manifest")
    manifest = life.world.children[("ConfigMap", volume["configMap"]["name"])]["data"][settings.FILE]
    assert json.loads(manifest)["spec"]["data"]["records"]["train"] == "other.jsonl"
    life.reach_the_end()
    assert attempts(life)["prepare"] == attempts(life)["train-value"] == 2


def test_stages_before_the_changed_one_are_kept(life):
    change(life, trainValue={"globalBatchSize": 8, "seed": 7})
    assert [stages(life)[name]["phase"] for name in ("prepare", "train-value")] == ["Succeeded", "Queued"]
    life.reach_the_end()
    assert (attempts(life)["prepare"], attempts(life)["train-value"]) == (1, 2)


@pytest.mark.parametrize(
    "spec",
    [
        {"trainValue": {"globalBatchSize": 8, "microBatchSize": 1}},
        {"trainValue": {"globalBatchSize": 8, "parallel": {"devices": 2}}},
        {"serve": {"enabled": True, "insecure": True, "page": True}, "runPolicy": {"backoffLimit": 5}},
        {"evaluate": {"maxTokens": 7}},
        {},
    ],
    ids=str,
)
def test_what_changes_no_result_has_nothing_done_again(life, spec):
    change(life, **spec)
    assert "SpecChanged" not in life.world.events
    life.reach_the_end()
    assert (attempts(life)["prepare"], attempts(life)["train-value"]) == (1, 1)


def test_a_finished_pipeline_goes_on_when_what_it_did_has_changed(life):
    life.reach_the_end()
    assert life.status()["phase"] == "Succeeded"
    change(life, trainSteer={"globalBatchSize": 8, "seed": 9})
    assert life.status()["phase"] == "Running"
    assert life.conditions().get("Complete") != "True"
    assert [stages(life)[name]["phase"] for name in ("annotate", "train-steer", "evaluate")] == ["Succeeded", "Queued", "Pending"]
    life.reach_the_end()
    assert (attempts(life)["train-steer"], attempts(life)["evaluate"]) == (2, 2)


def test_a_stage_that_failed_is_tried_again_when_its_fields_change(life):
    life.help()  # annotate's servers
    life.settle()
    while life.status()["currentStage"] != "train-steer":
        life.help()
        life.settle()
    life.fail_job(*life.world.jobs(), "exit 65")
    life.settle()
    assert life.status()["phase"] == "Failed"
    change(life, trainSteer={"globalBatchSize": 8, "seed": 9})
    assert (stages(life)["train-steer"]["phase"], stages(life)["train-steer"]["countedFailures"]) == ("Queued", 0)
    life.reach_the_end()


def test_other_shards_are_labelled_before_they_are_merged(life):
    life.help()
    life.settle()
    while stages(life)["annotate"]["step"] != "Merge":
        life.help()
        life.settle()
    change(life, annotate={"shards": 3})
    life.help()  # its servers again
    life.settle()
    job = next(job for job in life.world.jobs() if job["metadata"]["labels"][names.STAGE] == "annotate")
    assert job["spec"]["completions"] == 3
    assert stages(life)["annotate"]["step"] == "Work"
    life.reach_the_end()


def images(life):
    return {job["spec"]["template"]["spec"]["containers"][0]["image"] for job in life.world.jobs()}


def upgrade(life, worker):
    life.start_operator()
    life.controller.config = OperatorConfig.model_validate({"retrySeconds": 1, "images": {"worker": worker}})
    life.controller.apis = frozenset()
    life.settle()


def test_images_stay_what_they_were_when_the_operator_is_upgraded_until_a_restart():
    life = Lifetime()
    life.begin(shards=1, rounds=0, nodes=1, done=0)
    upgrade(life, "worker:1")
    assert images(life) == {"worker:1"}
    upgrade(life, "worker:2")
    life.help()
    life.settle()
    assert life.status()["currentStage"] == "train-value"
    assert images(life) == {"worker:1"}
    assert life.status()["images"] == {"worker": "worker:1", "train": "worker:1", "serve": "worker:1"}
    life.ask_to_restart("train-value")
    life.settle()
    assert images(life) == {"worker:2"}
    life.edit(images={"train": "mine:1"}, suspend=True)  # what the pipeline itself names comes first
    life.settle()
    life.edit(suspend=False)
    life.settle()
    assert images(life) == {"mine:1"}
    life.reach_the_end()
    upgrade(life, "worker:3")
    (served,) = life.world.deployments()
    assert served["spec"]["template"]["spec"]["containers"][0]["image"] == "worker:2"


def test_the_stages_manifest_has_no_field_at_its_default(pipeline):
    """A worker of an earlier version refuses fields that it does not know."""
    plain = json.loads(settings.text(pipeline(annotate={}, bootstrap={}, trainValue={}, trainSteer={})))["spec"]
    assert plain == {
        "attributes": {"preset": "helpsteer"},
        "data": {"records": {"train": "t.jsonl", "validation": "v.jsonl"}},
        "model": {"base": "base"},
    }
