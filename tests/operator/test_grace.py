"""How long a pod has to end, said to all who need it, and held against what a training measured."""

import pytest
from steerlm_operator.reconcile import objects

from tests.operator.lifetime import Lifetime
from tests.operator.test_resources import templates
from tests.operator.world import NAME


def test_pods_and_their_processes_have_the_same_grace(pipeline):
    made = [template for item, template in templates(objects(pipeline(runPolicy={"gracePeriodSeconds": 45}))) if item["kind"] == "Job"]
    assert len(made) >= 6
    for template in made:
        assert template["spec"]["terminationGracePeriodSeconds"] == 45
        env = {entry["name"]: entry.get("value") for entry in template["spec"]["containers"][0]["env"]}
        assert env["STEERLM_GRACE_SECONDS"] == "45"
    plain = next(template for item, template in templates(objects(pipeline())) if item["kind"] == "Job")
    assert plain["spec"]["terminationGracePeriodSeconds"] == 120


@pytest.fixture
def training():
    """A training of which a pod runs."""
    life = Lifetime()
    life.begin(shards=1, rounds=0, nodes=1, done=1)
    life.settle()
    life.world.start_pods(*life.world.jobs())
    life.settle()
    yield life
    life.loop.close()


def told(life, **progress):
    (pod,) = [name for name, pod in life.world.pods.items() if pod["status"]["phase"] == "Running"]
    life.controller._memory[NAME].progress = {pod: {"steerlm": "progress", "done": 3, "total": 9, "loss": 1.5, **progress}}
    life.settle()
    found = {c["type"]: c for c in life.status()["conditions"]}.get("CheckpointFits")
    return (found["status"], found["reason"], found["message"]) if found else None


def test_a_checkpoint_that_takes_longer_than_a_pod_has_is_said(training):
    assert told(training) is None
    assert told(training, stop_seconds=100)[:2] == ("True", "SavesInTime")
    status, reason, message = told(training, stop_seconds=111.5)
    assert (status, reason) == ("False", "GraceTooShort")
    assert "train-value takes 112 s" in message
    assert "has 120 s" in message
    assert training.world.events.count("GraceTooShort") == 1
    assert told(training, stop_seconds=113)[0] == "False"
    assert training.world.events.count("GraceTooShort") == 1
    training.edit(runPolicy={"gracePeriodSeconds": 300})
    assert told(training, stop_seconds=113)[0] == "True"
    assert training.status()["stages"][1]["progress"] == "3/9 loss 1.5"


def test_what_the_last_training_measured_is_forgotten(training):
    assert told(training, stop_seconds=500)
    training.help()
    training.settle()
    assert "CheckpointFits" not in training.conditions()
