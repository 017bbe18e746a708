"""A node that is lost under a running training, the operator's own pod on it too: the pipeline ends as if nothing had been."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from local_cluster.layout import NODE

from tests.cluster.test_installed import pipeline
from tests.inputs import STORIES

CLAIM = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
RECORD = (
    '{"conversations": [{"from": "User", "value": "Hi", "label": null}, {"from": "Assistant", "value": "Once upon a time", "label": '
    '"helpfulness:3,correctness:3,coherence:3,complexity:1,verbosity:1"}], "system": "s", "mask": "User", "type": "TEXT_TO_VALUE"}\n'
)
TRAINING = {"globalBatchSize": 2, "microBatchSize": 2, "maxSteps": 2, "validateEvery": 2}


@pytest.fixture
def inputs(local_cluster, namespace):
    """A claim with a base model and a few records in it, written into its volume's folder."""
    local_cluster.apply(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "inputs"}, "spec": CLAIM}, namespace=namespace
    )
    bound = local_cluster.wait("pvc", "inputs", lambda item: item["status"]["phase"] == "Bound", namespace=namespace)
    volume = local_cluster.get("pv", bound["spec"]["volumeName"])
    folder = Path(volume["spec"]["hostPath"]["path"])
    shutil.copytree(STORIES, folder / "base")
    for name in ("train.jsonl", "validation.jsonl"):
        (folder / name).write_text(8 * RECORD)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return "inputs"


def stage(item, name):
    return next((each for each in item.get("status", {}).get("stages", []) if each["name"] == name), {})


@pytest.mark.slow
@pytest.mark.megatron
@pytest.mark.timeout(1500)
def test_a_node_lost_under_a_training_counts_no_failure(installed, local_cluster, namespace, inputs):
    lost = pipeline(
        "lost",
        storage={"claimName": inputs},
        data={"records": {"train": "train.jsonl", "validation": "validation.jsonl"}},
        model={"base": "base", "maxSequenceLength": 256},
        trainValue=TRAINING,
        trainSteer=TRAINING,
        evaluate={"attributes": ["helpfulness"], "samplesPerLevel": 1, "maxTokens": 4},
    )
    installed.apply(lost, namespace=namespace)
    runs = ("slp", "lost")
    installed.wait(*runs, lambda item: stage(item, "train-value").get("phase") == "Running", namespace=namespace, timeout=600)
    (pod,) = installed.get("pods", "-l", "steerlm.dev/stage=train-value", namespace=namespace)["items"]
    local_cluster.stop("kubelet")
    local_cluster.lose_pod(pod["metadata"]["uid"])
    try:
        installed.wait("node", NODE, lambda item: any(c["type"] == "Ready" and c["status"] != "True" for c in item["status"]["conditions"]))
        # Where all nodes are lost, and here one is all, the controller may take itself for the one that is cut off, and not do this.
        installed.kubectl("taint", "node", NODE, "node.kubernetes.io/unreachable:NoExecute", "--overwrite")
        installed.wait(
            "pods",
            pod["metadata"]["name"],
            lambda item: any(c["type"] == "DisruptionTarget" for c in item["status"]["conditions"]),
            namespace=namespace,
            timeout=180,
        )
    finally:
        local_cluster.start("kubelet")
    ended = installed.wait(*runs, lambda item: item["status"]["phase"] in ("Succeeded", "Failed"), namespace=namespace, timeout=900)
    assert ended["status"]["phase"] == "Succeeded", installed.describe_failure(namespace)
    assert {each["name"]: (each["attempt"], each["countedFailures"]) for each in ended["status"]["stages"]} == {
        "prepare": (1, 0),
        "train-value": (2, 0),
        "annotate": (1, 0),
        "train-steer": (1, 0),
        "evaluate": (1, 0),
    }
    first = installed.get("jobs", "lost-train-value-1", namespace=namespace)["status"]["conditions"]
    assert ("Failed", "PodFailurePolicy") in {(condition["type"], condition["reason"]) for condition in first}
