"""Input hashes: pinned for the example pipelines, moved by each field exactly where it acts, and by nothing else."""

from __future__ import annotations

import copy
import json
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic_core import PydanticUndefined

from nemo_steerlm.pipeline.cluster_spec import ClusterFields
from nemo_steerlm.pipeline.currency import hashes
from nemo_steerlm.pipeline.manifest import PipelineSpec, load, parse
from nemo_steerlm.pipeline.sources import Spec
from nemo_steerlm.pipeline.stages import stages

GOLDEN = Path(__file__).parent / "golden_hashes.json"
"""Today's hashes and those that version 0.1.0 itself gave, by pipeline and stage. If a stage's results change, raise its FORMAT and pin it
again; if they do not, a test that fails here has found work that would be done again for nothing."""
EXAMPLES = Path(__file__).parents[2] / "examples" / "pipelines"
FULL: dict[str, Any] = {
    "attributes": {"custom": [{"name": "a", "high": 9, "description": "x"}, {"name": "b", "low": -1}], "languages": ["en", "de"]},
    "data": {"system": "S", "records": {"train": "t.jsonl", "validation": "v.jsonl", "unlabelled": "u.jsonl"}, "onError": "skip"},
    "model": {"base": "base", "chatTokens": {"turnStart": "<t>"}, "layout": "nemo-annotate"},
    "trainValue": {
        "lora": {"rank": 8, "layerSelection": [1, 2]},
        "overrides": ["model.hidden_dropout=0.1"],
        "limitValidationBatches": 3,
        "parallel": {"devices": 2},
    },
    "trainSteer": {"microBatchSize": 4, "seed": 7},
    "annotate": {"turns": "all", "shards": 4},
    "bootstrap": {"rounds": 2, "require": {"a": 9}},
    "evaluate": {"base": {"b": 1}, "judges": {"a": "words"}, "prompts": ["?"], "temperature": 0.5},
}


def pipeline(spec):
    head = {"apiVersion": "steerlm.dev/v1alpha1", "kind": "SteerLMPipeline", "metadata": {"name": "full"}}
    return parse({**head, "spec": spec}, "m")


def accepted(manifest):
    """Of each stage today's hash and version 0.1.0's, files and inputs having digests that follow from their names."""
    graph = stages(manifest)
    outputs = {stage.name: {output: f"sha256:{stage.name}/{output}" for output in stage.outputs} for stage in graph}
    identities = {stage.name: stage.identity({f: f"sha256:{f}" for f in stage.files}, outputs) for stage in graph}
    return {stage.name: list(hashes(manifest, stage, identities[stage.name])) for stage in graph}


def todays(spec):
    return {name: both[0] for name, both in accepted(pipeline(spec)).items()}


@pytest.mark.parametrize("name", [*(path.stem for path in sorted(EXAMPLES.glob("*.yaml"))), "full"])
def test_the_hashes_of_the_examples_are_pinned(name):
    manifest = pipeline(FULL) if name == "full" else load(EXAMPLES / f"{name}.yaml")
    assert accepted(manifest) == json.loads(GOLDEN.read_text())[name]


# Every field of the manifest, found by introspection, with the stages that it acts on.

TRAINED = {"train-value", "train-steer", "bootstrap-1-train"}
ALL = {"prepare", "annotate", "bootstrap-1-sample", "evaluate", *TRAINED}
ACTS_ON: dict[str, set[str]] = {
    "attributes": ALL,
    "data": {"prepare"},
    "data.system": {"prepare", *TRAINED},
    "model": ALL,
    "model.base": {"prepare", "train-value", "train-steer"},
    "trainValue": {"train-value"},
    "trainSteer": {"train-steer", "bootstrap-1-train"},
    "annotate": set(),
    "annotate.turns": {"prepare", "annotate", "bootstrap-1-sample"},
    "bootstrap": {"bootstrap-1-sample"},
    "bootstrap.train": {"bootstrap-1-train"},
    "evaluate": {"evaluate"},
    "serve": set(),
    **{
        f"{training}.{field}": set()
        for training in ("trainValue", "trainSteer")
        for field in ("parallel", "microBatchSize", "saveEveryMinutes")
    },
    **{str(field.alias): set() for field in ClusterFields.model_fields.values()},
}
"""By the longest prefix of a field's path."""

BASE: dict[str, Any] = {
    "attributes": {"custom": [{"name": "quality"}, {"name": "humor"}, {"name": "helpfulness"}]},
    "data": {"oasst": {"path": "trees.jsonl"}},
    "model": {"base": "base"},
    "bootstrap": {"rounds": 1, "requireAny": True},
}
SPECIAL: dict[str, Any] = {
    "attributes.custom": [{"name": "quality", "high": 3}, {"name": "humor"}, {"name": "helpfulness"}],
    "attributes.preset": "oasst",
    "attributes.languages": ["en"],
    "bootstrap.require": {"quality": 1},
    "bootstrap.rounds": None,  # another graph: see below
    "bootstrap.requireAny": None,  # wants another field with it
    "evaluate.attributes": ["humor"],
    "bootstrap.train.learningRate": 7e-6,
    "bootstrap.train.minLearningRate": 1e-6,
    "evaluate.prompts": ["?"],
    "evaluate.base": {"quality": 1},
    "evaluate.judges": {"quality": "words"},
    "evaluate.baselines": ["unlabelled"],
    "evaluate.bestOfBaselines": None,  # wants others with it
    "evaluate.wording": {"quality": ["0", "1", "2", "3", "4"]},
    "evaluate.pairs": {"path": "pairs.jsonl", "weights": {"quality": 1.0}},
    "data.ratedText": {"files": [{"path": "x", "prompt": "?"}], "ratings": {"quality": {"column": "1"}}},
    "data.nemotron": None,  # has no ratings: it stands beside others
    "data.sources": [{"weight": 2, "oasst": {"path": "x"}}, {"nemotron": {"path": "y"}}],
    "trainValue.parallel.deviceMemory": "80Gi",
    "trainSteer.parallel.deviceMemory": "80Gi",
    "restart": {"token": "t"},
    "storage": {"claimName": "c"},
    "managedBy": "example.com/other",
    "serve.enabled": None,  # wants another field with it
    "serve.token": {"name": "a", "key": "b"},
    "serve.namespaces": ["a"],
    "serve.engine": {"external": {"url": "http://a:1"}},
    "annotate.servers.engine": {"vllm": {"args": ["--max-model-len", "64"]}},
    "pods": {"train": {"env": {"A": "b"}}},
    "scheduling": {"queueName": "q"},
    "model.base": "other",
    **{f"{training}.parallel.{field}": None for training in ("trainValue", "trainSteer") for field in ("tensor", "pipeline")},
    **{f"{training}.overrides": ["model.hidden_dropout=0.1"] for training in ("trainValue", "trainSteer")},
    **{f"{training}.minLearningRate": 1e-6 for training in ("trainValue", "trainSteer")},
    **{f"{training}.learningRate": 7e-6 for training in ("trainValue", "trainSteer")},
    **{f"{training}.globalBatchSize": 256 for training in ("trainValue", "trainSteer")},
}


def leaves(model, path=""):
    """Dotted path, type and default of every field, those of nested parts included."""
    for field in model.model_fields.values():
        here = f"{path}{field.alias}"
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Spec) and here not in SPECIAL:
            yield from leaves(inner, f"{here}.")
        else:
            yield here, inner, field.default


def other_value(annotation, default):
    """A valid value of that type which is not the default."""
    kind, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    plain = {bool: lambda: not default, int: lambda: (default or 1) * 2, float: lambda: (default or 1) / 2, str: lambda: "other"}
    if kind is Annotated:
        return other_value(arguments[0], default)
    if type(None) in arguments:
        return other_value(next(a for a in arguments if a is not type(None)), default)
    if kind is Literal:
        return next(value for value in arguments if value != default)
    if kind is dict:
        return {"quality": other_value(arguments[1], None)}
    if kind is tuple and ... not in arguments:
        return [float(number) for number, _ in enumerate(arguments)]
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return {field.alias: other_value(field.annotation, None) for field in annotation.model_fields.values() if field.is_required()}
    assert annotation in plain, f"say in SPECIAL which value {annotation} may take"
    return plain[annotation]()


def with_value(path, value):
    spec = copy.deepcopy(BASE)
    *parents, last = path.split(".")
    place = spec
    for key in parents:
        place = place.setdefault(key, {})
    place[last] = value
    if path == "bootstrap.require":
        del spec["bootstrap"]["requireAny"]
    if path == "attributes.preset":
        del spec["attributes"]["custom"]
    if path.startswith("data.") and path not in ("data.oasst", "data.onError", "data.system"):
        del spec["data"]["oasst"]
    return spec


FIELDS = {path: SPECIAL[path] if path in SPECIAL else other_value(kind, default) for path, kind, default in leaves(PipelineSpec)}


def expected(path):
    prefix = path
    while prefix not in ACTS_ON:
        prefix, dot, _ = prefix.rpartition(".")
        assert dot, f"say in ACTS_ON which stages {path} acts on"
    return ACTS_ON[prefix]


@pytest.mark.parametrize("path", [path for path, value in FIELDS.items() if value is not None])
def test_a_field_moves_the_hash_of_exactly_the_stages_that_it_acts_on(path):
    before, after = todays(BASE), todays(with_value(path, FIELDS[path]))
    assert {name for name in before if before[name] != after.get(name)} == expected(path)


def set_fields(model, path=""):
    for field in model.model_fields.values():
        if field.default is not PydanticUndefined and not isinstance(field.default, Spec) and field.default is not None:
            yield f"{path}{field.alias}", field.default
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Spec):
            yield from set_fields(field.annotation, f"{path}{field.alias}.")


@pytest.mark.parametrize(("path", "default"), list(set_fields(PipelineSpec)), ids=lambda value: str(value)[:40])
def test_a_field_at_its_default_moves_no_hash(path, default):
    """So a new field at its default moves none either."""
    written = json.loads(json.dumps(default))
    spec = with_value(path, written)
    spec.setdefault("bootstrap", {}).update(BASE["bootstrap"])
    assert todays(spec) == todays(BASE)


def test_more_bootstrap_rounds_move_only_the_evaluation():
    more = copy.deepcopy(BASE)
    more["bootstrap"]["rounds"] = 2
    before, after = todays(BASE), todays(more)
    assert {name for name in before if before[name] != after[name]} == {"evaluate"}


def test_the_source_of_a_training_is_part_of_its_hash():
    """Two trainings with the same fields and other records are other work."""
    hashes_now = todays(BASE)
    assert len(set(hashes_now.values())) == len(hashes_now)


def test_the_package_s_version_is_no_part_of_a_hash(monkeypatch):
    before = todays(BASE)
    monkeypatch.setattr("nemo_steerlm.__version__", "9.9.9")
    assert todays(BASE) == before


def test_what_version_0_1_0_could_not_have_made_has_no_hash_of_its(monkeypatch):
    """A field it did not know, at another value than the default; or a stage whose format has been raised since."""
    raised = ["prepare", "bootstrap-1-sample", "evaluate"]
    assert [name for name, both in accepted(pipeline(BASE)).items() if len(both) == 1] == raised
    monkeypatch.setattr("nemo_steerlm.pipeline.stages.annotate.FORMAT", 2)
    assert [name for name, both in accepted(pipeline(BASE)).items() if len(both) == 1] == ["prepare", "annotate", *raised[1:]]
    from nemo_steerlm.pipeline import legacy

    known = {**legacy._FIELDS, "TrainSpec": tuple(f for f in legacy._FIELDS["TrainSpec"] if f != "seed")}
    monkeypatch.setattr(legacy, "_FIELDS", known)
    assert len(accepted(pipeline(BASE))["train-steer"]) == 2  # at its default
    assert len(accepted(pipeline({**BASE, "trainSteer": {"seed": 2}}))["train-steer"]) == 1
