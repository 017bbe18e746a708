"""The stage graph is a pure function of the manifest; a hash changes with what changes the result, and with nothing else."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.pipeline import registry
from nemo_steerlm.pipeline.manifest import parse
from nemo_steerlm.pipeline.stages import find, stages
from tests.pipeline.manifests import SMALLEST, with_field


def graph(path=None, value=None):
    return stages(parse(with_field(path, value) if path else SMALLEST, "m"))


def hashes(stage_graph):
    outputs = {stage.name: dict.fromkeys(stage.outputs, "sha256:0") for stage in stage_graph}
    return {stage.name: stage.input_hash(dict.fromkeys(stage.files, "sha256:1"), outputs) for stage in stage_graph}


def test_the_order_without_and_with_bootstrap_rounds():
    assert [s.name for s in graph()] == ["prepare", "train-value", "annotate", "train-steer", "evaluate"]
    rounds = graph("spec.bootstrap", {"rounds": 2, "requireAny": True})
    assert [s.name for s in rounds][4:] == [
        "bootstrap-1-sample", "bootstrap-1-train", "bootstrap-2-sample", "bootstrap-2-train", "evaluate",
    ]  # fmt: skip


def test_the_registry_says_of_each_stage_what_the_stage_says_of_itself():
    by_name = {stage.name: stage for stage in graph("spec.bootstrap", {"rounds": 2, "requireAny": True})}
    assert re.fullmatch(registry.pattern(), "bootstrap-12-train")
    assert not re.fullmatch(registry.pattern(), "bootstrap-train")
    for entry in registry.STAGES:
        stage = by_name[entry.named(2 if entry.each_round else None)]
        assert re.fullmatch(registry.pattern(), stage.name)
        assert stage.round == (2 if entry.each_round else None)
        assert (stage.training and stage.training.role) == entry.trains
    assert [name for name in registry.trainings("steer") if name in by_name] == ["bootstrap-2-train", "bootstrap-1-train", "train-steer"]
    assert registry.trainings("value") == ("train-value",)


@given(rounds=st.integers(0, 6))
def test_a_stage_reads_only_what_earlier_stages_wrote(rounds):
    seen = {}
    for stage in graph("spec.bootstrap", {"rounds": rounds, "requireAny": True}):
        for name, outputs in stage.inputs.items():
            assert set(outputs) <= set(seen[name])
        assert set(stage.after) >= {need.stage for need in stage.servers}
        seen[stage.name] = stage.outputs


@pytest.mark.parametrize(
    ("path", "value", "changed"),
    [
        ("spec.trainValue.learningRate", 1e-3, {"train-value"}),
        ("spec.trainValue.overrides", ["model.hidden_dropout=0.1"], {"train-value"}),
        ("spec.trainSteer.lora", {}, {"train-steer"}),
        ("spec.evaluate.samplesPerLevel", 3, {"evaluate"}),
        ("spec.annotate.turns", "all", {"prepare", "annotate"}),
        ("spec.data.oasst.seed", 3, {"prepare"}),
        ("spec.model.layout", "nemo-annotate", {"prepare", "train-value", "annotate", "train-steer", "evaluate"}),
    ],
)
def test_a_field_changes_the_hash_of_the_stages_that_read_it(path, value, changed):
    before, after = hashes(graph()), hashes(graph(path, value))
    assert {name for name in before if before[name] != after[name]} == changed


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.trainValue.parallel", {"devices": 2, "tensor": 2}),
        ("spec.trainValue.microBatchSize", 1),
        ("spec.annotate.shards", 16),
        ("spec.annotate.servers", {"replicas": 8}),
        ("spec.serve", {"enabled": True, "insecure": True, "page": True}),
        ("metadata.name", "other"),
    ],
)
def test_where_and_how_wide_a_stage_runs_changes_no_hash(path, value):
    assert hashes(graph()) == hashes(graph(path, value))


def test_another_digest_of_an_input_changes_the_hash():
    stage = find(graph(), "train-value")
    files = dict.fromkeys(stage.files, "sha256:1")
    outputs = {"prepare": {"value_train.jsonl": "sha256:0", "value_val.jsonl": "sha256:0"}}
    assert stage.input_hash(files, outputs) != stage.input_hash(files, {"prepare": {**outputs["prepare"], "value_val.jsonl": "sha256:2"}})
    assert stage.input_hash(files, outputs) != stage.input_hash(dict.fromkeys(stage.files, "sha256:2"), outputs)


@pytest.mark.parametrize(("output", "changed"), [("metrics.json", set()), ("model.nemo", set()), ("hf", {"annotate", "evaluate"})])
def test_a_training_done_again_with_the_same_result_changes_no_hash(output, changed):
    """Its metrics hold its speed, and model.nemo when it was written: only the exported model is what others read."""
    before = hashes(graph())
    outputs = {stage.name: dict.fromkeys(stage.outputs, "sha256:0") for stage in graph()}
    outputs["train-value"][output] = "sha256:2"
    after = {stage.name: stage.input_hash(dict.fromkeys(stage.files, "sha256:1"), outputs) for stage in graph()}
    assert {name for name in before if before[name] != after[name]} == changed


def test_an_unknown_stage_is_named_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean train-value"):
        find(graph(), "train-valu")
