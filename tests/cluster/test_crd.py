"""What the API server refuses, and what it says: one wrong resource a rule."""

import copy
from pathlib import Path

import kubernetes
import pytest

GROUP = {"group": "steerlm.dev", "version": "v1alpha1", "plural": "steerlmpipelines"}
SPEC = {
    "attributes": {"preset": "helpsteer"},
    "data": {"records": {"train": "t.jsonl", "validation": "v.jsonl"}},
    "model": {"base": "base"},
}
WRONG = {
    "no attributes": ({"attributes": {}}, "give exactly one of preset and custom"),
    "two attribute lists": ({"attributes": {"preset": "paper", "custom": [{"name": "a"}]}}, "give exactly one of preset and custom"),
    "low above high": ({"attributes": {"custom": [{"name": "a", "low": 4, "high": 1, "default": 2}]}}, "low must be smaller than high"),
    "default outside": ({"attributes": {"custom": [{"name": "a", "default": 9}]}}, "default must lie between low and high"),
    "no data": ({"data": {}}, "name exactly one of oasst, helpsteer, ratedText, records"),
    "ranks do not divide": ({"trainValue": {"parallel": {"devices": 3, "tensor": 2}}}, "tensor x pipeline must divide nodes x devices"),
    "batches do not divide": ({"trainSteer": {"globalBatchSize": 3, "microBatchSize": 2}}, "must be a multiple of microBatchSize"),
    "unknown steered": ({"evaluate": {"attributes": ["wit"]}}, "evaluate.attributes names an attribute that spec.attributes does not have"),
    "unknown base": ({"evaluate": {"base": {"wit": 1}}}, "evaluate.base names an attribute"),
    "unknown judge": ({"evaluate": {"judges": {"wit": "words"}}}, "evaluate.judges names an attribute"),
    "unknown required": ({"bootstrap": {"require": {"wit": 1}}}, "bootstrap.require names an attribute"),
    "unknown rating": (
        {"data": {"ratedText": {"files": [{"path": "a", "prompt": "b"}], "ratings": {"wit": {"column": "c"}}}}},
        "data.ratedText.ratings names an attribute",
    ),
    "unknown computed": (
        {"data": {"ratedText": {"files": [{"path": "a", "prompt": "b"}], "computed": {"wit": {}}}}},
        "data.ratedText.computed names an attribute",
    ),
    "two claims": ({"storage": {"claimName": "a", "claimTemplate": {"size": "1Gi"}}}, "give claimName or claimTemplate, not both"),
    "toleration of nothing": ({"scheduling": {"tolerations": [{}]}}, "a toleration without key needs operator Exists"),
    "too many shards": ({"annotate": {"shards": 5000}}, "should be less than or equal to 4096"),
    "climbing path": ({"storage": {"claimName": "a", "directory": "../other"}}, "should match"),
}
FORBIDDEN_CHANGES = {
    "data": ({"data": {"records": {"train": "other.jsonl"}}}, "may change only while the pipeline is suspended"),
    "storage": ({"storage": {"claimName": "other"}}, "storage may change only while the pipeline is suspended"),
    "engine": ({"engine": "JobSet"}, "engine cannot be changed"),
    "managedBy": ({"managedBy": "example.com/other"}, "managedBy cannot be changed"),
}


@pytest.fixture(scope="module")
def steerlm_crd(control_plane):
    """The committed CustomResourceDefinition, served."""
    path = Path(__file__).parents[2] / "k8s/crd/steerlmpipelines.yaml"
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(path))
    control_plane.kubectl("wait", "--for=condition=Established", "crd/steerlmpipelines.steerlm.dev", "--timeout=60s")


@pytest.fixture
def pipelines(control_plane, namespace):
    """create(name, spec) and edit(name, spec) in this test's namespace."""
    api = kubernetes.client.CustomObjectsApi(kubernetes.config.new_client_from_config(str(control_plane.kubeconfig)))

    def create(spec, name="p"):
        body = {"apiVersion": "steerlm.dev/v1alpha1", "kind": "SteerLMPipeline", "metadata": {"name": name}, "spec": spec}
        return api.create_namespaced_custom_object(namespace=namespace, body=body, field_validation="Strict", **GROUP)

    def edit(spec, name="p"):
        return api.patch_namespaced_custom_object(namespace=namespace, name=name, body={"spec": spec}, **GROUP)

    return create, edit


def refused(call, *arguments):
    with pytest.raises(kubernetes.client.ApiException) as caught:
        call(*arguments)
    assert caught.value.status in (400, 422)
    return caught.value.body


@pytest.mark.usefixtures("steerlm_crd")
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_resources_are_refused_with_what_to_write(pipelines, wrong):
    create, _ = pipelines
    spec, sentence = WRONG[wrong]
    assert sentence in refused(create, copy.deepcopy(SPEC) | spec)


@pytest.mark.usefixtures("steerlm_crd")
def test_names_and_unknown_fields_are_refused(pipelines):
    create, _ = pipelines
    assert "at most 40 characters" in refused(create, SPEC, "a" * 41)
    assert "must start with a letter" in refused(create, SPEC, "1a")
    assert "unknown field" in refused(create, SPEC | {"annotat": {}})


@pytest.mark.usefixtures("steerlm_crd")
@pytest.mark.parametrize("change", FORBIDDEN_CHANGES)
def test_changes_that_finished_stages_would_not_fit_are_refused(pipelines, change):
    create, edit = pipelines
    create(SPEC)
    spec, sentence = FORBIDDEN_CHANGES[change]
    assert sentence in refused(edit, spec)
    if "suspended" in sentence:
        edit({"suspend": True})
        edit(spec)


@pytest.mark.usefixtures("steerlm_crd")
def test_scaling_moves_the_annotation_servers(control_plane, pipelines, namespace):
    create, _ = pipelines
    assert create(SPEC)["spec"]["annotate"]["servers"]["replicas"] == 1
    api = kubernetes.client.CustomObjectsApi(kubernetes.config.new_client_from_config(str(control_plane.kubeconfig)))
    body = {"spec": {"replicas": 3}}
    api.patch_namespaced_custom_object_scale(namespace=namespace, name="p", body=body, **GROUP)
    found = api.get_namespaced_custom_object(namespace=namespace, name="p", **GROUP)
    assert found["spec"]["annotate"]["servers"]["replicas"] == 3
