"""What a pipeline takes of the cluster and how its training goes: in its status, and as metrics."""

from __future__ import annotations

import datetime

import pytest
from prometheus_client import REGISTRY

from tests.operator.lifetime import Lifetime
from tests.operator.world import NAME

PLACE = {"namespace": NAME[0], "pipeline": NAME[1]}


@pytest.fixture
def life():
    """A pipeline whose training has four devices on each of two nodes."""
    made = Lifetime()
    made.begin(shards=1, rounds=0, nodes=2, done=0)
    made.edit(trainValue={"parallel": {"nodes": 2, "devices": 4}, "globalBatchSize": 16})
    yield made
    made.loop.close()


def until_stage(life, name):
    for _ in range(20):
        life.settle()
        if life.status()["currentStage"] == name and life.world.jobs():
            return life.world.jobs()[0]
        life.help()
    raise AssertionError(f"{name} never came")


def pods_of(life, job):
    return sorted(name for name in life.world.pods if name.startswith(job["metadata"]["name"]))


def passes(life, **time):
    life.world.now += datetime.timedelta(**time)


def held(life):
    return life.status().get("devices", {}).get("held", 0)


def test_device_hours_count_what_pods_hold_and_for_how_long(life):
    job = until_stage(life, "train-value")
    hours = life.status().get("devices", {}).get("hours", 0)
    life.world.start_pods(job)
    life.settle()
    assert held(life) == 8
    passes(life, minutes=30)
    life.settle()
    assert life.status()["devices"]["hours"] == pytest.approx(hours + 4)  # brought up to date while it runs
    passes(life, minutes=30)
    life.edit(suspend=True)
    life.settle()
    assert held(life) == 0
    assert life.status()["devices"]["hours"] == pytest.approx(hours + 8)
    passes(life, hours=5)
    life.settle()
    assert life.status()["devices"]["hours"] == pytest.approx(hours + 8)


def test_a_pod_that_has_no_node_yet_holds_nothing(life):
    job = until_stage(life, "train-value")
    life.world.start_pods(job)
    waiting, pulling = (life.world.pods[name] for name in pods_of(life, job))
    waiting["status"] = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}
    pulling["status"] = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]}
    for pod in (waiting, pulling):
        life.world._stamp(pod)
    life.settle()
    assert held(life) == 4


def test_little_is_written_for_it(life):
    """Bringing the sum up to date costs a write: not at each look."""
    life.world.start_pods(until_stage(life, "train-value"))
    life.settle()
    writes = life.world.writes
    for _ in range(9):
        passes(life, minutes=1)
        life.settle()
    assert life.world.writes == writes
    passes(life, minutes=1)
    life.settle()
    assert life.world.writes == writes + 1


def test_a_cluster_without_devices_has_no_such_status():
    life = Lifetime()
    life.begin(shards=1, rounds=0, nodes=1, done=0)
    life.edit(scheduling={"deviceResource": "none"})
    life.reach_the_end()
    assert "devices" not in life.status()
    life.loop.close()


def value(name, **labels):
    return REGISTRY.get_sample_value(name, PLACE | labels)


def test_loss_and_speed_are_shown_while_a_training_runs(life):
    job = until_stage(life, "train-value")
    life.world.start_pods(job)
    life.settle()
    [first, _] = pods_of(life, job)
    said = {"steerlm": "progress", "stage": "train-value", "done": 3, "total": 9, "loss": 1.5, "tokens_per_second": 2000.0}
    life.controller._memory[NAME].progress = {first: said}
    life.settle()
    assert value("steerlm_stage_loss", stage="train-value") == 1.5
    assert value("steerlm_stage_tokens_per_second", stage="train-value") == 2000.0
    assert value("steerlm_devices_held") == 8
    life.controller._memory[NAME].progress = {first: said | {"loss": None}}  # a step whose loss was no number
    life.settle()
    assert value("steerlm_stage_loss", stage="train-value") is None
    assert value("steerlm_stage_tokens_per_second", stage="train-value") == 2000.0
    life.help()
    life.settle()
    assert value("steerlm_stage_tokens_per_second", stage="train-value") is None
    life.controller._forget(NAME)
    assert value("steerlm_devices_held") is None


def test_a_server_elsewhere_holds_nothing_here():
    life = Lifetime()
    life.begin(shards=1, rounds=0, nodes=1, done=0)
    engine = {"external": {"url": "http://vllm:8000"}}
    life.edit(serve={"enabled": True, "insecure": True, "devices": 4, "engine": engine})
    life.reach_the_end()
    deployment = life.world.children["Deployment", "p-serve"]
    labels = {**deployment["metadata"]["labels"]}
    metadata = {"name": "s", "labels": labels, "annotations": {}, "ownerReferences": [{"uid": deployment["metadata"]["uid"]}]}
    life.world.pods["s"] = life.world._stamp({"kind": "Pod", "metadata": metadata, "status": {"phase": "Running"}})
    life.settle()
    assert held(life) == 0
    life.edit(serve={"enabled": True, "insecure": True, "devices": 4})
    life.settle()
    assert held(life) == 4
    life.loop.close()
