"""A wrong value fails before anything is made, with a sentence; the schema leaves nothing open."""

from __future__ import annotations

import json

import jsonschema
import pytest
import yaml

from charts.generate import CHART
from tests.chart.test_rendering import EVERYTHING, MATRIX, PIPELINE

WRONG = {
    "unknown name": ({"replicaCount": 2}, "additional properties 'replicaCount' not allowed"),
    "unknown part": ({"image": {"name": "x"}}, "at '/image': additional properties 'name' not allowed"),
    "scope": ({"scope": "everywhere"}, "at '/scope': value must be one of 'cluster', 'namespaced'"),
    "scope and namespaces": ({"namespaces": ["a"]}, "Set scope to namespaced, or leave namespaces empty"),
    "number as text": ({"terminationGracePeriodSeconds": "30"}, "at '/terminationGracePeriodSeconds': got string, want integer"),
    "quantity as number": ({"config": {"resources": {"train": {"cpu": 8}}}}, "got number, want"),
    "configuration": ({"config": {"retries": 1}}, "at '/config': additional properties 'retries' not allowed"),
    "configuration's bounds": ({"config": {"workers": 0}}, "at '/config/workers': minimum: got 0, want 1"),
    "what the chart sets": ({"config": {"namespaces": ["a"]}}, "at '/config': additional properties 'namespaces' not allowed"),
    "root": ({"user": {"runAsUser": 0}}, "got 0, want 1"),
    "digest": ({"image": {"digest": "latest"}}, "at '/image/digest': 'latest' does not match pattern"),
    "affinity": ({"affinity": {"nodeAffinitee": {}}}, "additional properties 'nodeAffinitee' not allowed"),
    "toleration": ({"tolerations": [{"key": "a", "operator": "Maybe"}]}, "at '/tolerations/0/operator': value must be one of"),
    "pipeline's name": ({"pipelines": {"Mine": {"spec": PIPELINE}}}, "at '/pipelines': additional properties 'Mine' not allowed"),
    "pipeline without spec": ({"pipelines": {"a": {}}}, "at '/pipelines/a': missing property 'spec'"),
    "pipeline's field": ({"pipelines": {"a": {"spec": PIPELINE | {"anotate": {}}}}}, "additional properties 'anotate' not allowed"),
    "monitor without service": (
        {"metrics": {"service": {"enabled": False}, "serviceMonitor": {"enabled": True}}},
        "Enable that, or use metrics.podMonitor",
    ),
}


@pytest.fixture(scope="module")
def schema():
    return json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("values", WRONG, ids=str)
def test_a_wrong_value_is_refused_with_a_sentence(refused, values):
    given, sentence = WRONG[values]
    assert sentence in refused(given)


def test_every_object_in_the_schema_is_closed(schema):
    """Either no other names, or any name with a described value; only ``global`` belongs to others."""

    def walk(node, path):
        if isinstance(node, list):
            for index, item in enumerate(node):
                walk(item, (*path, index))
        elif isinstance(node, dict):
            if node.get("type") == "object" or "properties" in node:
                closed = node.get("additionalProperties") is False
                typed = isinstance(node.get("additionalProperties"), dict)
                assert closed or typed or path == ("properties", "global"), path
            for key, value in node.items():
                walk(value, (*path, key))

    walk(schema, ())


def test_defaults_and_samples_fit_the_schema(schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    defaults = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    for values in (defaults, *MATRIX.values()):
        given = {key: value for key, value in values.items() if key != "user"}  # there null takes a default away, which only helm does
        jsonschema.validate(given, schema)


def test_everything_sets_every_part(schema):
    """The values that set everything keep up with the chart: a new value is tried, or named here."""
    untried = {
        "global",
        "nameOverride",
        "fullnameOverride",
        "scope",
        "namespaces",
        "crds",
        "user",
        "probes",
        "terminationGracePeriodSeconds",
    }
    assert set(schema["properties"]) - set(EVERYTHING) == untried


def test_the_table_in_the_readme_has_every_value(schema):
    table = (CHART / "README.md").read_text(encoding="utf-8")
    for name in schema["properties"]:
        assert name == "global" or f"| `{name}`" in table or f"| `{name}." in table, name


def test_it_can_be_part_of_another_chart(helm, tmp_path):
    parent = tmp_path / "parent"
    (parent / "charts").mkdir(parents=True)
    (parent / "charts/steerlm-operator").symlink_to(CHART)
    dependency = {"name": "steerlm-operator", "version": "0.1.0", "repository": ""}
    (parent / "Chart.yaml").write_text(
        yaml.safe_dump({"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": [dependency]})
    )
    objects = helm.template(parent, values={"global": {"anything": 1}, "steerlm-operator": {"scope": "namespaced"}})
    assert "Deployment" in {item["kind"] for item in objects}
