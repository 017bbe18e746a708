"""The server that stays: restarted for what it runs and for nothing else, put right when somebody changes it."""

import copy
import itertools

import pytest
from steerlm_operator import names
from steerlm_operator.config import OperatorConfig
from steerlm_operator.reconcile import objects
from steerlm_operator.resources import engines, servers

from tests.operator.lifetime import Lifetime
from tests.operator.test_edits import upgrade

KEY = ("Deployment", "p-serve")


@pytest.fixture
def life():
    """A finished pipeline whose model is served."""
    made = Lifetime()
    made.begin(shards=1, rounds=0, nodes=1, done=0)
    upgrade(made, "worker:1")
    made.reach_the_end()
    yield made
    made.loop.close()


def template(life):
    return copy.deepcopy(life.world.children[KEY]["spec"]["template"])


def test_another_version_of_the_operator_restarts_nothing(life, monkeypatch):
    before = template(life)
    monkeypatch.setattr(servers, "DRAIN_SECONDS", 7)  # what a later version thinks better
    monkeypatch.setattr(engines, "PROBE_SECONDS", 9)
    upgrade(life, "worker:2")
    assert template(life) == before
    life.edit(serve={"enabled": True, "insecure": True, "replicas": 3})
    life.settle()
    assert life.world.children[KEY]["spec"]["replicas"] == 3
    assert template(life) == before
    life.edit(serve={"enabled": True, "insecure": True, "replicas": 3, "page": True})
    life.settle()
    assert "--page" in template(life)["spec"]["containers"][0]["args"]
    assert "7" in template(life)["spec"]["containers"][0]["args"]


SERVED = {"enabled": True, "insecure": True}
RUNS = [
    {"images": {"serve": "s:9"}},
    {"images": {"serve": "s:9", "pullPolicy": "Always"}},
    {"resources": {"servers": {"memory": "1Gi"}}},
    {"serve": {**SERVED, "devices": 2}},
    {"serve": {**SERVED, "engine": {"megatron": {}}}},
    {"images": {"serve": "s:9", "train": "t:9"}},
    {"images": {"serve": "s:9", "vllm": "v:8"}, "serve": {**SERVED, "engine": {"vllm": {}}}},
    {"images": {"serve": "s:9", "vllm": "v:9"}},
    {"serve": {"enabled": True, "token": {"name": "t", "key": "k"}}},
    {"serve": {"enabled": True, "token": {"name": "t", "key": "other"}}},
    {"scheduling": {"nodeSelector": {"pool": "gpu"}}},
    {"pods": {"serve": {"annotations": {"team": "a"}}}},
]
"""Each says of the server what the one before it does not."""


def test_what_it_runs_changes_with_all_that_people_and_the_chart_say_of_it(life):
    seen = [template(life)]
    for change in RUNS:
        life.edit(**change)
        life.settle()
        seen.append(template(life))
    for chart in ({"environment": {"NCCL_DEBUG": "WARN"}}, {"security": {"runAsUser": 4321}}):
        life.controller.config = OperatorConfig.model_validate({"images": {"worker": "worker:1"}, **chart})
        life.settle()
        seen.append(template(life))
    assert all(a != b for a, b in itertools.pairwise(seen))


def test_servers_are_replaced_one_by_one(pipeline):
    def strategy(**serve):
        made = objects(pipeline(serve={"enabled": True, "insecure": True, **serve}))
        return next(item for item in made if item["metadata"]["name"] == "demo-serve" and item["kind"] == "Deployment")["spec"]["strategy"]

    assert strategy() == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    assert strategy(maxSurge=2)["rollingUpdate"] == {"maxSurge": 2, "maxUnavailable": 0}


def edited(life, **spec):
    """Somebody changes the Deployment by hand."""
    found = copy.deepcopy(life.world.children[KEY])
    found["spec"] |= spec
    found["metadata"]["generation"] = found["metadata"].get("generation", 1) + 1
    life.world.children[KEY] = life.world._stamp(found)


def test_a_deployment_that_somebody_edited_is_put_right_once(life):
    before = template(life)
    wrong = copy.deepcopy(before)
    wrong["spec"]["containers"][0]["image"] = "mine"
    for number in (1, 2):
        edited(life, template=wrong)
        life.settle()
        assert template(life) == before
        assert life.world.events.count("ServingCorrected") == number
    writes = life.world.writes
    life.settle()
    assert life.world.writes == writes


def test_a_number_of_servers_that_somebody_set_is_put_right(life):
    before = template(life)
    edited(life, replicas=7)
    life.settle()
    assert (life.world.children[KEY]["spec"]["replicas"], template(life)) == (1, before)


@pytest.mark.parametrize(("metrics", "stage"), [({}, "train-steer"), ({"best": "train-steer", "quality": 1}, "evaluate")])
def test_a_pipeline_that_version_0_1_0_evaluated_is_served_from_its_last_training(metrics, stage):
    """Its evaluate chose no model: there is no evaluate/hf."""
    life = Lifetime()
    life.begin(shards=1, rounds=0, nodes=1, done=0)
    life.evaluate(metrics)
    assert life.status()["phase"] == "Succeeded"
    assert template(life)["spec"]["containers"][0]["args"][1] == f"/data/runs/p/{stage}/hf"
    life.loop.close()


def test_a_server_that_0_1_0_made_is_taken_over(life):
    """It has no hash of what it runs."""
    del life.world.children[KEY]["metadata"]["annotations"][names.RUNS]
    life.world.children[KEY]["metadata"]["annotations"][names.APPLIED] = "old"
    life.settle()
    assert names.RUNS in life.world.children[KEY]["metadata"]["annotations"]
