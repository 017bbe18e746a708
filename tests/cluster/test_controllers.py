"""The controllers that the operator names, really run, built from their Go modules. Only under ``make test-controllers``."""

from __future__ import annotations

import os

import pytest
from local_cluster import controllers
from local_cluster.cluster import LocalCluster
from local_cluster.errors import UnavailableError

from tests.cluster.pipelines import TWO_NODES
from tests.cluster.stand_in import DONE, stage_of
from tests.cluster.test_pipeline import CLAIM, NAMESPACE, complete, in_two_pods, inputs, place  # noqa: F401  fixtures
from tests.pipeline.tiny import STAGES

pytestmark = [
    pytest.mark.controllers,
    pytest.mark.megatron,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(not os.environ.get("STEERLM_TEST_CONTROLLERS"), reason="make test-controllers runs this"),
]
STARTS = {
    controllers.JOBSET: controllers.start_jobset,
    controllers.KUEUE: controllers.start_kueue,
}


def start(cluster, *wanted):
    """Controllers in a cluster of this machine, in this order."""
    if not isinstance(cluster, LocalCluster):
        pytest.skip("starts controllers inside of a cluster of this machine, and STEERLM_TEST_KUBECONFIG names another")
    try:
        built = [(controller, controllers.build(controller)) for controller in wanted]
    except UnavailableError as error:
        pytest.skip(str(error))
    for controller, root in built:
        STARTS[controller](cluster, root)
    return cluster


@pytest.fixture(scope="module")
def with_jobset(control_plane):
    return start(control_plane, controllers.JOBSET)


@pytest.fixture(scope="module")
def with_queue(with_jobset):
    """JobSet too: Kueue looks for its definition when it starts."""
    return start(with_jobset, controllers.KUEUE)


@pytest.fixture(scope="module")
def node(place):  # noqa: F811
    return start(place, controllers.JOBSET, controllers.KUEUE)


def queue(namespace, *, cpu):
    """A queue of Kueue's in a namespace, which shares out so many processors."""

    def kueue(kind, name, spec):
        return {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": kind, "metadata": {"name": name}, "spec": spec}

    amounts = {"cpu": cpu, "memory": "1Ti", "ephemeral-storage": "1Ti"}
    flavor = {"name": "any", "resources": [{"name": name, "nominalQuota": amount} for name, amount in amounts.items()]}
    spec = {"namespaceSelector": {}, "resourceGroups": [{"coveredResources": list(amounts), "flavors": [flavor]}]}
    local = kueue("LocalQueue", "queue", {"clusterQueue": namespace})
    local["metadata"]["namespace"] = namespace
    return [kueue("ResourceFlavor", "any", {}), kueue("ClusterQueue", namespace, spec), local]


@pytest.mark.usefixtures("operator")
def test_jobset_runs_a_training_and_takes_it_away(with_jobset, pipelines, kubelet):
    """Its real webhooks take the object, its controller makes the Job that the operator reads, and suspending leaves nothing."""
    kubelet(lambda pod: DONE if stage_of(pod) != "train-steer" else None)
    pipelines.create(engine="JobSet", trainValue=TWO_NODES, trainSteer=TWO_NODES)
    pipelines.until(lambda s: s.stages.get("train-value", {}).get("phase") == "Succeeded")
    pipelines.until(lambda s: s.stages.get("train-steer", {}).get("reason") == "Unschedulable")
    job = pipelines.jobs()["p-train-steer-1-node-0"]
    assert job.metadata.owner_references[0].kind == "JobSet"
    [host] = {entry.value for entry in job.spec.template.spec.containers[0].env if entry.name == "PET_MASTER_ADDR"}
    assert host.startswith(f"p-train-steer-1-node-0-0.{job.spec.template.spec.subdomain}.")
    pipelines.edit(suspend=True)
    pipelines.until(lambda s: s.holds("Suspended"))
    assert "p-train-steer-1-node-0" not in pipelines.jobs()
    left = with_jobset.get("jobsets", namespace=pipelines.name)["items"]
    assert [item["metadata"]["name"] for item in left] == ["p-train-value-1"]


@pytest.mark.usefixtures("operator")
def test_kueue_holds_back_what_has_no_quota(with_queue, pipelines, kubelet):
    """Jobs, JobSets and servers; a stage that waits for its turn is neither stuck nor failed, however long that takes."""
    kubelet(lambda pod: None if pod.spec.scheduling_gates else DONE)
    with_queue.apply(*queue(pipelines.name, cpu="0"))
    pipelines.create(engine="JobSet", trainValue=TWO_NODES, scheduling={"queueName": "queue"})
    waiting = pipelines.until(lambda s: s.stages.get("prepare", {}).get("reason") == "AwaitingAdmission")
    assert not waiting.holds("Stalled")
    assert pipelines.jobs()["p-prepare-1"].spec.suspend
    with_queue.apply(*queue(pipelines.name, cpu="1k"))
    ended = pipelines.until(lambda s: s.ended, seconds=600)
    assert ended.holds("Complete")
    assert set(ended.attempts().values()) == {1}
    admitted = {
        (item["metadata"]["ownerReferences"][0]["kind"], condition["status"])
        for item in with_queue.get("workloads", namespace=pipelines.name)["items"]
        for condition in item.get("status", {}).get("conditions", ())
        if condition["type"] == "Admitted"
    }
    assert {kind for kind, _ in admitted} >= {"Job", "JobSet"}


def test_the_whole_loop_runs_in_jobsets_that_a_queue_admits(node):
    """Two trainings of two pods each, which know each other by JobSet's names; Jobs, JobSets and the pods of servers take their turns."""
    node.apply(*queue(NAMESPACE, cpu="64"))
    item = in_two_pods("in-jobsets", storage={"claimName": CLAIM}, scheduling={"queueName": "queue"})
    item["spec"]["engine"] = "JobSet"
    node.apply(item, namespace=NAMESPACE)
    found = complete(node, "in-jobsets")
    assert {stage["name"]: (stage["phase"], stage["attempt"]) for stage in found["status"]["stages"]} == dict.fromkeys(
        STAGES, ("Succeeded", 1)
    )
    made = node.get("jobsets", namespace=NAMESPACE)["items"]
    terminal = {item["metadata"]["name"]: item["status"].get("terminalState") for item in made}
    assert terminal == {"in-jobsets-train-value-1": "Completed", "in-jobsets-train-steer-1": "Completed"}
    admitted = {item["metadata"]["ownerReferences"][0]["kind"] for item in node.get("workloads", namespace=NAMESPACE)["items"]}
    assert admitted >= {"Job", "JobSet"}
