"""The CustomResourceDefinition: generated, committed as generated, structural, described and bounded."""

import json
from pathlib import Path

import pytest
import yaml

from nemo_steerlm.pipeline import crd, manifest
from nemo_steerlm.pipeline.cluster_spec import ClusterFields

ROOT = Path(__file__).parents[2]


def nodes(schema, path="spec"):
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from nodes(schema["additionalProperties"], f"{path}{{}}")


def version():
    return crd.definition()["spec"]["versions"][0]


def everything():
    properties = version()["schema"]["openAPIV3Schema"]["properties"]
    return [*nodes(properties["spec"]), *nodes(properties["status"], "status")]


def test_the_committed_file_is_what_is_generated():
    committed = (ROOT / "k8s/crd/steerlmpipelines.yaml").read_text(encoding="utf-8")
    assert committed == crd.HEADER + crd.dump(crd.definition()), "run: steerlm schema --crd > k8s/crd/steerlmpipelines.yaml"
    assert yaml.safe_load(committed) == crd.definition()


def test_every_field_is_described():
    missing = [path for path, schema in everything() if not schema.get("description") and path[-1] not in "]}"]
    assert missing == []


def test_every_field_is_bounded():
    bounds = {"string": "maxLength", "array": "maxItems", "integer": "minimum"}
    unbounded = [
        path
        for path, schema in everything()
        if (bound := bounds.get(schema["type"])) and bound not in schema and "enum" not in schema and "format" != "date-time"
    ]
    # Values of attributes: checked against each attribute's own range.
    assert set(unbounded) == {"spec.bootstrap.require{}", "spec.evaluate.base{}"}
    assert all("maxProperties" in schema for _, schema in everything() if "additionalProperties" in schema)


def test_it_is_structural():
    text = json.dumps(crd.definition())
    for word in ("$ref", "anyOf", "oneOf", "prefixItems", '"null"', '"const"', "preserve-unknown-fields"):
        assert word not in text
    assert all(schema["type"] in ("object", "array", "string", "integer", "number", "boolean") for _, schema in everything())


def test_a_default_that_the_api_server_fills_in_is_the_one_that_runs_locally():
    """Applied to a cluster, a manifest must mean what it means on one machine."""
    minimal = {"attributes": {"preset": "helpsteer"}, "data": {"helpsteer": {"path": "x"}}, "model": {"base": "b"}}
    schema = version()["schema"]["openAPIV3Schema"]["properties"]["spec"]

    def filled(value, schema):
        if not isinstance(value, dict) or "properties" not in schema:
            return value
        with_defaults = {n: s["default"] for n, s in schema["properties"].items() if "default" in s} | value
        return {n: filled(v, schema["properties"][n]) for n, v in with_defaults.items()}

    body = {"apiVersion": manifest.API_VERSION, "kind": manifest.KIND, "metadata": {"name": "a"}}
    local = manifest.parse({**body, "spec": minimal}, "local")
    assert manifest.parse({**body, "spec": filled(minimal, schema)}, "cluster") == local


def test_a_local_manifest_says_nothing_about_clusters():
    body = {"attributes": {"preset": "helpsteer"}, "data": {"helpsteer": {"path": "x"}}, "model": {"base": "b"}}
    spec = manifest.PipelineSpec.model_validate(body)
    set_fields = {
        name for name in ClusterFields.model_fields if getattr(spec, name) not in (None, False, "steerlm.dev/operator", "WhileSuspended")
    }
    assert set_fields == set()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "k8s/samples").glob("*.yaml")) + sorted((ROOT / "examples/pipelines").glob("*.yaml")), ids=lambda p: p.name
)
def test_samples_and_examples_are_valid(path):
    assert manifest.load(path).metadata.name


def test_scale_reads_what_the_status_has():
    scale = version()["subresources"]["scale"]
    for field in ("specReplicasPath", "statusReplicasPath", "labelSelectorPath"):
        found = version()["schema"]["openAPIV3Schema"]
        for part in scale[field].strip(".").split("."):
            found = found["properties"][part]
        assert found["type"] in ("integer", "string")
