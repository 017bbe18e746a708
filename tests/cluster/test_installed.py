"""The operator that helm installed, on a node: what real kubelets say about pipelines that cannot run, and what a pipeline leaves."""

from __future__ import annotations

import time

import pytest

from tests.cluster import operating
from tests.cluster.pipelines import SPEC


def pipeline(name, **spec):
    return {"apiVersion": "steerlm.dev/v1alpha1", "kind": "SteerLMPipeline", "metadata": {"name": name}, "spec": SPEC | spec}


SLOW_SECONDS = 600
"""For pods to start, or to be refused, on a machine that is busy with other things. They do so side by side."""


def reads(condition, reason, words=""):
    """Whether a condition has this reason, and these words in its message.

    The words belong to it: a kubelet and a scheduler may first say something else under the same reason, such as that a claim is not bound
    yet or that a Secret was not read in time.
    """

    def holds(item):
        found = item.get("status", {}).get("conditions") or []
        return any(c["type"] == condition and c["reason"] == reason and words in c["message"] for c in found)

    return holds


def test_helm_test_runs_as_a_pod(installed, helm):
    said = helm("test", operating.RELEASE, "--namespace", operating.HOME, "--logs", cluster=installed).stdout
    assert "Phase:          Succeeded" in said
    lines = [line for line in said.splitlines() if line.startswith(("ok ", "FAILED"))]
    assert [line.split()[0] for line in lines] == ["ok"] * 4
    assert lines[0].endswith("/healthz: ok")
    assert lines[1].endswith("/readyz: ok")
    assert lines[2] == "ok     steerlm.dev/v1alpha1 is served"
    assert lines[3].endswith("rights in all namespaces")


CANNOT_RUN = {
    "secret": (
        {"secrets": {"huggingFace": {"name": "absent", "key": "token"}}},
        "SecretsAvailable",
        "SecretNotFound",
        '"absent" not found',
    ),
    "image": ({"images": {"worker": "absent.invalid/worker:1"}}, "Progressing", "ImageNotAvailable", "absent.invalid/worker:1"),
    "room": ({"resources": {"prepare": {"cpu": "999"}}}, "Progressing", "Unschedulable", "Insufficient cpu"),
    "claim": ({"storage": {"claimName": "absent"}}, "StorageReady", "ClaimNotFound", "PersistentVolumeClaim absent"),
    "data": ({}, "Failed", "WrongManifest", "t.jsonl"),
    "memory": ({"resources": {"prepare": {"memory": "16Mi"}}}, "Failed", "OutOfMemory", "raise spec.resources"),
}


@pytest.fixture
def stuck(installed, namespace):
    """A pipeline for each thing that may be missing."""
    installed.apply(*(pipeline(name, **spec) for name, (spec, *_) in CANNOT_RUN.items()), namespace=namespace)
    return namespace


def test_what_is_missing_is_named(installed, stuck):
    end = time.monotonic() + SLOW_SECONDS
    for name, (_, condition, reason, words) in CANNOT_RUN.items():
        installed.wait("slp", name, reads(condition, reason, words), namespace=stuck, timeout=max(1, end - time.monotonic()))


def test_deleting_leaves_only_a_claim_that_is_to_be_retained(installed, namespace):
    """Claims that the operator made: with their data where the template says ``retain``, gone with their volumes where not."""
    for name, retain in (("kept", True), ("gone", False)):
        template = {"size": "1Gi", "retain": retain}
        installed.apply(pipeline(name, storage={"claimTemplate": template}), namespace=namespace)
    volumes = {}
    for name in ("kept", "gone"):
        installed.wait("slp", name, reads("Failed", "WrongManifest"), namespace=namespace, timeout=SLOW_SECONDS / 2)
        volumes[name] = installed.get("pvc", f"{name}-data", namespace=namespace)["spec"]["volumeName"]
        assert {item["kind"] for item in left(installed, namespace, name)} >= {"Job", "Pod", "ConfigMap", "NetworkPolicy"}
    installed.kubectl("delete", "slp", "kept", "gone", namespace=namespace)
    installed.wait_gone("pv", volumes["gone"])
    for name in ("kept", "gone"):
        installed.kubectl("wait", "--for=delete", "jobs,pods", "-l", f"steerlm.dev/pipeline={name}", namespace=namespace)
    assert left(installed, namespace, "gone") == []
    (claim,) = left(installed, namespace, "kept")
    assert (claim["kind"], claim["metadata"]["name"], claim["status"]["phase"]) == ("PersistentVolumeClaim", "kept-data", "Bound")
    assert installed.get("pv", volumes["kept"])["status"]["phase"] == "Bound"


def left(cluster, namespace, name):
    """Every object of a pipeline, of every kind the cluster has."""
    kinds = cluster.kubectl("api-resources", "--namespaced", "--verbs=list,delete", "-o", "name").stdout.split()
    return cluster.get(",".join(kinds), "-l", f"steerlm.dev/pipeline={name}", namespace=namespace)["items"]
