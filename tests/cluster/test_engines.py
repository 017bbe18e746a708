"""JobSet, Volcano and Coscheduling: their objects as an API server takes them. None of their controllers is here.

Their definitions are stand-ins that take any object: that an object is right by the real schema is not shown here.
"""

from __future__ import annotations

import kubernetes
import pytest

from tests.cluster.pipelines import TWO_NODES
from tests.cluster.stand_in import DONE, stage_of

JOBSET = {"group": "jobset.x-k8s.io", "version": "v1alpha2", "plural": "jobsets", "kind": "JobSet"}
VOLCANO = {"group": "scheduling.volcano.sh", "version": "v1beta1", "plural": "podgroups", "kind": "PodGroup"}
COSCHEDULING = {"group": "scheduling.x-k8s.io", "version": "v1alpha1", "plural": "podgroups", "kind": "PodGroup"}


def definition(group, version, plural, kind):
    anything = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{group}",
            # The groups with k8s.io in their names are the project's own, and guarded.
            "annotations": {"api-approved.kubernetes.io": "unapproved, a stand-in for tests"},
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"plural": plural, "kind": kind},
            "versions": [{"name": version, "served": True, "storage": True, "schema": anything}],
        },
    }


@pytest.fixture
def engines(control_plane):
    """The definitions, while a test runs: others want them absent."""
    made = [definition(**each) for each in (JOBSET, VOLCANO, COSCHEDULING)]
    names = [f"crd/{each['metadata']['name']}" for each in made]
    control_plane.apply(*made)
    control_plane.kubectl("wait", "--for=condition=Established", *names, "--timeout=60s")
    yield
    control_plane.kubectl("delete", *names, "--wait")


def found(pipelines, kind, name):
    """An object of an engine; None where it is not there."""
    try:
        where = {key: kind[key] for key in ("group", "version", "plural")}
        return pipelines.custom.get_namespaced_custom_object(namespace=pipelines.name, name=name, **where)
    except kubernetes.client.ApiException as error:
        assert error.status == 404
        return None


@pytest.mark.usefixtures("engines", "operator")
@pytest.mark.parametrize(("gang", "kind"), [("Volcano", VOLCANO), ("Coscheduling", COSCHEDULING)])
def test_a_gang_has_its_pod_group(pipelines, kubelet, gang, kind):
    kubelet(lambda pod: DONE if stage_of(pod) == "prepare" else None)
    pipelines.create(trainValue=TWO_NODES, scheduling={"gang": gang})
    job = pipelines.until_listed(pipelines.batch.list_namespaced_job, lambda job: job.metadata.name == "p-train-value-1")
    assert found(pipelines, kind, "p-train-value-1")["spec"]["minMember"] == 2
    assert job.spec.template.spec.scheduler_name in ("volcano", "scheduler-plugins-scheduler")


@pytest.mark.usefixtures("engines", "operator")
def test_a_job_set_goes_with_its_stage(control_plane, pipelines, kubelet):
    """Its Job, which JobSet would have made, is what tells how it is; what is deleted is the JobSet."""
    kubelet(lambda pod: DONE if stage_of(pod) == "prepare" else None)
    pipelines.create(engine="JobSet", trainValue=TWO_NODES)
    pipelines.until(lambda s: s.stages.get("train-value", {}).get("attempt") == 1)
    jobset = None
    while jobset is None:
        jobset = found(pipelines, JOBSET, "p-train-value-1")  # the test's time limit ends this
    template = jobset["spec"]["replicatedJobs"][0]["template"]
    owner = {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "name": "p-train-value-1", "uid": jobset["metadata"]["uid"]}
    metadata = {
        "name": "p-train-value-1-node-0",
        "labels": template["metadata"]["labels"],
        "ownerReferences": [owner | {"controller": True}],
    }
    pipelines.batch.create_namespaced_job(pipelines.name, {"metadata": metadata, "spec": template["spec"]})
    pipelines.until(lambda s: s.stages["train-value"]["reason"] == "Unschedulable")
    pipelines.edit(suspend=True)
    while found(pipelines, JOBSET, "p-train-value-1"):
        pass
    # The garbage collector does this as soon as it has heard of the new definition, which may be before or long after.
    control_plane.kubectl("delete", "job/p-train-value-1-node-0", "--ignore-not-found", namespace=pipelines.name)
    pipelines.until(lambda s: s.holds("Suspended"))
