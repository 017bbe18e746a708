"""What the API server refuses, and what it says: one wrong resource a rule. And what people read of the definition."""

from __future__ import annotations

import copy
import json
import re

import kubernetes
import pytest
import yaml

from nemo_steerlm.pipeline.pod_spec import ROLES
from tests.cluster.operating import DEFINITION, define
from tests.cluster.operating import ROOT as REPOSITORY
from tests.cluster.pipelines import GROUP

SPEC = {
    "attributes": {"preset": "helpsteer"},
    "data": {"records": {"train": "t.jsonl", "validation": "v.jsonl"}},
    "model": {"base": "base"},
}
RATED_TEXT = {"files": [{"path": "a", "prompt": "b"}]}
KEYED = ("messages", "sharegpt", "alpaca", "argilla", "distilabel")
"""Sources whose ratings stand under keys that the manifest names."""
WIT = {"custom": [{"name": "wit"}]}
WRONG = {
    ("", "metadata.name must start with a letter"): {},  # the name itself is the mistake
    ("spec", "evaluate.attributes names"): {"evaluate": {"attributes": ["wit"]}},
    ("spec", "evaluate.base names"): {"evaluate": {"base": {"wit": 1}}},
    ("spec", "evaluate.judges names"): {"evaluate": {"judges": {"wit": "words"}}},
    ("spec", "bootstrap.require names"): {"bootstrap": {"require": {"wit": 1}}},
    ("spec", "data.ratedText.ratings names"): {"data": {"ratedText": {**RATED_TEXT, "ratings": {"wit": {"column": "c"}}}}},
    ("spec", "data.ratedText.computed names"): {"data": {"ratedText": {**RATED_TEXT, "computed": {"wit": {}}}}},
    **{
        ("spec", f"data.{source}.ratings names"): {"data": {source: {"path": "a", "ratings": {"wit": {"key": "k", "range": [0, 1]}}}}}
        for source in KEYED
    },
    **{
        (f"spec.data.{source}.ratings{{}}", "range needs two"): {
            "data": {source: {"path": "a", "ratings": {"helpfulness": {"key": "k", "range": [1, 1]}}}}
        }
        for source in KEYED
    },
    ("spec", "data.oasst: it has ratings of"): {"attributes": WIT, "data": {"oasst": {"path": "a"}}},
    ("spec", "data.helpsteer: it has ratings of helpfulness"): {"attributes": WIT, "data": {"helpsteer": {"path": "a"}}},
    ("spec", "data.helpsteer: it has ratings of quality"): {"data": {"helpsteer": {"path": "a", "preference": True}}},
    ("spec", "data.ultrafeedback: it has ratings of"): {"attributes": WIT, "data": {"ultrafeedback": {"path": "a"}}},
    ("spec.data.ratedText", "data.ratedText: it names no ratings"): {"data": {"ratedText": RATED_TEXT}},
    ("spec.data.ratedText", "an attribute is either rated or computed"): {
        "data": {"ratedText": {**RATED_TEXT, "ratings": {"helpfulness": {"column": "c"}}, "computed": {"helpfulness": {}}}}
    },
    ("spec.data.ratedText.files[]", "give exactly one of prompt"): {
        "data": {"ratedText": {"files": [{"path": "a"}], "ratings": {"helpfulness": {"column": "c"}}}}
    },
    ("spec.attributes", "give exactly one of preset and custom"): {"attributes": {"preset": "paper", "custom": [{"name": "a"}]}},
    ("spec.attributes.custom[]", "low must be smaller"): {"attributes": {"custom": [{"name": "a", "low": 4, "high": 1, "default": 2}]}},
    ("spec.attributes.custom[]", "default must lie"): {"attributes": {"custom": [{"name": "a", "default": 9}]}},
    ("spec.data", "name exactly one"): {"data": {}},
    ("spec.data.sources[]", "name exactly one"): {"data": {"sources": [{"weight": 2}]}},
    ("spec", "data.nemotron: it names no ratings"): {"data": {"nemotron": {"path": "a"}}},
    ("spec.trainValue", "globalBatchSize must"): {"trainValue": {"globalBatchSize": 3, "microBatchSize": 2}},
    ("spec.trainSteer", "globalBatchSize must"): {"trainSteer": {"globalBatchSize": 6, "microBatchSize": 2, "parallel": {"devices": 2}}},
    ("spec.trainValue", "learningRate must"): {"trainValue": {"learningRate": 1e-6}},
    ("spec.trainSteer", "learningRate must"): {"trainSteer": {"minLearningRate": 6e-6}},
    ("spec.trainValue.parallel", "tensor x pipeline"): {"trainValue": {"parallel": {"devices": 3, "tensor": 2}}},
    ("spec.trainSteer.parallel", "tensor x pipeline"): {"trainSteer": {"parallel": {"nodes": 2, "pipeline": 3}}},
    ("spec.serve", "a server that stays needs a token"): {"serve": {"enabled": True}},
    ("spec", "annotate.servers.engine.vllm combines no two prompts"): {
        "annotate": {"servers": {"engine": {"vllm": {}}}},
        "evaluate": {"guidanceScale": 2.0},
    },
    ("spec.serve", "engine.megatron.pipeline must divide devices"): {"serve": {"devices": 3, "engine": {"megatron": {"pipeline": 2}}}},
    ("spec.serve.engine", "name at most one of vllm"): {"serve": {"engine": {"vllm": {}, "megatron": {}}}},
    ("spec.annotate.servers", "engine.megatron.pipeline must divide devices"): {
        "annotate": {"servers": {"devices": 3, "engine": {"megatron": {"pipeline": 2}}}}
    },
    ("spec.annotate.servers.engine", "name at most one of vllm"): {"annotate": {"servers": {"engine": {"vllm": {}, "megatron": {}}}}},
    ("spec.bootstrap", "rounds need require"): {"bootstrap": {"rounds": 1}},
    ("spec", "data.helpsteer.preference: both answers of a pair"): {"data": {"helpsteer": {"path": "h", "preference": True}}},
    ("spec.storage", "give claimName or claimTemplate"): {"storage": {"claimName": "a", "claimTemplate": {"size": "1Gi"}}},
    ("spec.scheduling.tolerations[]", "a toleration without key"): {"scheduling": {"tolerations": [{}]}},
    **{
        (f"spec.pods.{role}.{field}[]", sentence): {"pods": {role: {field: [value]}}}
        for role in ROLES
        for field, sentence, value in (
            ("envFrom", "give exactly one of secret and configMap", {}),
            ("volumes", "give exactly one of configMap, secret", {"name": "a", "mountPath": "/a"}),
            ("tolerations", "a toleration without key", {}),
        )
    },
}
"""By where a rule stands and how its sentence begins: what else the spec has to say to break it."""
FORBIDDEN_CHANGES = {
    "attributes": {"attributes": {"preset": "steerlm9"}},
    "data": {"data": {"records": {"train": "other.jsonl"}}},
    "model": {"model": {"layout": "nemo-annotate"}},
    "trainValue": {"trainValue": {"maxSteps": 7}},
    "trainSteer": {"trainSteer": {"seed": 7}},
    "bootstrap": {"bootstrap": {"prompts": 1}},
    "evaluate": {"evaluate": {"seed": 7}},
    "annotate.shards": {"annotate": {"shards": 7}},
    "annotate.turns": {"annotate": {"turns": "all"}},
    "storage": {"storage": {"claimName": "other"}},
    "engine": {"engine": "JobSet"},
    "managedBy": {"managedBy": "example.com/other"},
}
"""By the field that a rule about updates names: a change of it."""


def schemas(schema, path=""):
    """Every schema of the definition with its path."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from schemas(child, f"{path}.{name}".lstrip("."))
    for inner, mark in ((schema.get("items"), "[]"), (schema.get("additionalProperties"), "{}")):
        if inner:
            yield from schemas(inner, path + mark)


ROOT = yaml.safe_load(DEFINITION.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
RULES = [(path, rule["message"], "oldSelf" in rule["rule"]) for path, s in schemas(ROOT) for rule in s.get("x-kubernetes-validations", ())]
STATE = [(path, message) for path, message, of_update in RULES if not of_update]
UPDATES = [message for _, message, of_update in RULES if of_update]


@pytest.fixture(scope="module", autouse=True)
def _definition(control_plane):
    define(control_plane)


def refused(call, *arguments, **fields):
    with pytest.raises(kubernetes.client.ApiException) as caught:
        call(*arguments, **fields)
    assert caught.value.status in (400, 422)
    return json.loads(caught.value.body)["message"]


@pytest.fixture
def create(pipelines):
    """create(name="p", **spec): the smallest resource with other fields."""

    def make(name="p", **spec):
        body = {"apiVersion": "steerlm.dev/v1alpha1", "kind": "SteerLMPipeline", "metadata": {"name": name}}
        body["spec"] = copy.deepcopy(SPEC) | spec
        return pipelines.custom.create_namespaced_custom_object(namespace=pipelines.name, body=body, field_validation="Strict", **GROUP)

    return make


def test_every_rule_refuses_a_wrong_resource_with_its_sentence(create):
    """One resource a rule of the definition; a new rule without one fails here."""
    for path, message in STATE:
        wrong = [spec for (place, start), spec in WRONG.items() if place == path and message.startswith(start)]
        assert len(wrong) == 1, f"no wrong resource for the rule at {path or 'the root'}: {message}"
        said = refused(create, "1a" if not path else "p", **wrong[0])
        field = re.escape(path).replace(re.escape("[]"), r"\[0\]").replace(re.escape("{}"), r"\[helpfulness\]")
        assert re.search(rf"{field}: Invalid value: [^ ]*.*{re.escape(message)}", said), said
    assert len(STATE) == len(WRONG)


def test_samples_and_local_manifests_apply_unchanged(control_plane, pipelines):
    files = [*sorted((REPOSITORY / "k8s/samples").glob("*.yaml")), *sorted((REPOSITORY / "examples/pipelines").glob("*.yaml"))]
    flags = [flag for path in files for flag in ("-f", str(path))]
    said = control_plane.kubectl("create", "--dry-run=server", "--validate=strict", *flags, namespace=pipelines.name).stdout.splitlines()
    assert len(said) == len(files)
    assert all(line.endswith(" created (server dry run)") for line in said)


def test_bounds_and_unknown_fields_are_refused(create):
    assert "at most 40 characters" in refused(create, "a" * 41)
    assert "unknown field" in refused(create, annotat={})
    assert "should be less than or equal to 4096" in refused(create, annotate={"shards": 5000})
    assert "should match" in refused(create, storage={"claimName": "a", "directory": "../other"})
    assert "spec.evaluate.judges.helpfulness: Invalid value" in refused(create, evaluate={"judges": {"helpfulness": "vader2"}})


def test_changes_that_finished_stages_would_not_fit_are_refused(pipelines, create):
    """Each field that a rule about updates names, changed while the pipeline runs and while it is suspended."""
    named = {field: message for message in UPDATES for field in re.split(" may change| cannot be", message)[0].split(", ")}
    assert named.keys() == FORBIDDEN_CHANGES.keys()
    create("in-one-commit")
    pipelines.edit("in-one-commit", edits="Redo", **FORBIDDEN_CHANGES["trainValue"])
    create()
    for field, change in FORBIDDEN_CHANGES.items():
        assert named[field] in refused(pipelines.edit, **change)
    pipelines.edit(suspend=True)
    for field, change in FORBIDDEN_CHANGES.items():
        if "suspended" in named[field]:
            pipelines.edit(**change)
        else:
            assert named[field] in refused(pipelines.edit, **change)
    assert pipelines.get()["spec"]["annotate"] == {"shards": 7, "turns": "all", "servers": pipelines.get()["spec"]["annotate"]["servers"]}


def test_scaling_moves_the_annotation_servers(pipelines, create):
    assert create()["spec"]["annotate"]["servers"]["replicas"] == 1
    place = {"namespace": pipelines.name, "name": "p", **GROUP}
    pipelines.custom.patch_namespaced_custom_object_scale(body={"spec": {"replicas": 3}}, **place)
    assert pipelines.get()["spec"]["annotate"]["servers"]["replicas"] == 3


@pytest.mark.parametrize("path", ["spec.annotate", "spec.storage.claimTemplate", "spec.runPolicy", "status.stages"])
def test_explain_reads_like_documentation(control_plane, path):
    """Every field with its type and its sentences, as they stand beside it in the code."""
    said = control_plane.kubectl("explain", f"slp.{path}").stdout
    words = " ".join(said.split())
    schema = next(schema for place, schema in schemas(ROOT) if place == path)
    assert f"DESCRIPTION: {schema['description']}" in words
    fields = (schema.get("items") or schema)["properties"]
    for name, field in fields.items():
        assert re.search(rf"^  {name}\t<", said, re.MULTILINE), said
        assert field["description"] in words
    assert [line.split()[0] for line in said.splitlines() if re.match(r"  [a-z]\w+\t<", line)] == sorted(fields)


def test_columns_say_where_a_pipeline_stands(control_plane, pipelines, create):
    create(suspend=True)
    moment = "2026-01-01T00:00:00Z"
    progressing = {"type": "Progressing", "status": "True", "reason": "StageRunning", "message": "", "lastTransitionTime": moment}
    status = {"phase": "Running", "currentStage": "train-value", "round": 1, "progress": "train-value 4/9 loss 1.8"}
    status |= {"conditions": [progressing], "devices": {"held": 8, "hours": 12.5}}
    pipelines.custom.patch_namespaced_custom_object_status(namespace=pipelines.name, name="p", body={"status": status}, **GROUP)

    def table(*arguments):
        header, row = control_plane.kubectl("get", *arguments, namespace=pipelines.name).stdout.splitlines()
        starts = [found.start() for found in re.finditer(r"\S+", header)]
        ends = [*starts[1:], None]
        return {header[a:b].strip(): row[a:b].strip() for a, b in zip(starts, ends, strict=True)}

    narrow = {"NAME": "p", "PHASE": "Running", "STAGE": "train-value", "PROGRESS": "train-value 4/9 loss 1.8"}
    wide = {"ROUND": "1", "SUSPENDED": "true", "REASON": "StageRunning", "DEVICE-HOURS": "12.5"}
    for resource in ("slp", "steerlmpipelines", "steerlm"):  # short name, plural, category
        assert {k: v for k, v in table(resource).items() if k != "AGE"} == narrow
    assert {k: v for k, v in table("slp", "-o", "wide").items() if k != "AGE"} == narrow | wide
