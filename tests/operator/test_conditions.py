"""What tools see that know nothing of pipelines: by kstatus' rules, which Flux and Helm apply, and by the documented script for Argo."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.operator.lifetime import Lifetime

ARGO = Path(__file__).parents[2] / "docs/kubernetes/gitops.md"


def kstatus(item):
    """cli-utils' kstatus for a custom resource: generation, Reconciling, Stalled, Ready."""
    status = item.get("status", {})
    if status.get("observedGeneration") != item["metadata"]["generation"]:
        return "InProgress"
    found = {c["type"]: c["status"] for c in status.get("conditions", [])}
    if found.get("Reconciling") == "True":
        return "InProgress"
    if found.get("Stalled") == "True":
        return "Failed"
    return "Current" if found.get("Ready", "True") == "True" else "InProgress"


def argo(item):
    """The health that the script in the documentation finds."""
    lupa = pytest.importorskip("lupa")
    (script,) = re.findall(r"```lua\n(.*?)```", ARGO.read_text(encoding="utf-8"), re.DOTALL)
    lua = lupa.LuaRuntime()
    lua.globals().obj = lua.table_from(item, recursive=True)
    return lua.execute(script)["status"]


@pytest.fixture
def life():
    made = Lifetime()
    made.begin(shards=1, rounds=0, nodes=1, done=1)
    made.settle()
    yield made
    made.loop.close()


def seen(life):
    life.settle()
    return kstatus(life.world.resource), argo(life.world.resource)


def test_a_pipeline_that_runs_and_one_that_is_served(life):
    assert kstatus(life.world.resource) == "InProgress"
    assert seen(life) == ("InProgress", "Progressing")
    life.reach_the_end()
    (served,) = life.world.deployments()
    served["status"] = {"readyReplicas": 1}
    life.world._stamp(served)
    assert seen(life) == ("Current", "Healthy")
    served["status"] = {}
    life.world._stamp(served)
    assert seen(life) == ("InProgress", "Progressing")


def test_a_failed_pipeline_and_a_wrong_one_are_red(life):
    life.fail_job(*life.world.jobs(), "exit 65")
    assert seen(life) == ("Failed", "Degraded")
    life.ask_to_restart(None)
    assert seen(life) == ("InProgress", "Progressing")
    life.edit(restart={"token": "x", "fromStage": "bootstrap-7-train"})
    assert seen(life) == ("Failed", "Degraded")


@pytest.mark.parametrize(
    ("waiting", "red"),
    [
        ({"containerStatuses": [{"image": "x", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no"}}}]}, True),
        ({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}]}, False),
        ({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}, False),
    ],
    ids=["no image", "no room", "queued"],
)
def test_what_a_person_has_to_do_something_about_is_red_and_a_full_cluster_is_not(life, waiting, red):
    (job,) = life.world.jobs()
    life.world.start_pods(job)
    for pod in life.world.pods.values():
        if pod["status"]["phase"] == "Running":
            pod["status"] = {"phase": "Pending", **waiting}
            life.world._stamp(pod)
    assert seen(life) == (("Failed", "Degraded") if red else ("InProgress", "Progressing"))
    life.help()
    assert seen(life)[0] == "InProgress"


def test_a_suspended_pipeline_is_neither_red_nor_green(life):
    life.edit(suspend=True)
    assert seen(life) == ("InProgress", "Suspended")
