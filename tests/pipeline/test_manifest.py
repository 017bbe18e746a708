"""A manifest is read whole or refused with sentences that name the field and what to write instead."""

from __future__ import annotations

import pytest
import yaml

from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.pipeline.manifest import load, parse
from tests.pipeline.manifests import SMALLEST, with_field


def test_smallest_manifest_has_the_tutorials_numbers():
    spec = parse(SMALLEST, "m").spec
    train = spec.train_value
    assert (train.max_steps, train.global_batch_size, train.micro_batch_size, train.learning_rate) == (1000, 128, 2, 6e-6)
    assert spec.attributes.schema_().names[:2] == ("quality", "toxicity")


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("spec.trainValue.maxStep", 3, "spec.trainValue.maxStep: unknown key; did you mean maxSteps?"),
        ("spec.data.oast", {}, "spec.data.oast: unknown key; did you mean oasst?"),
        ("spec.model", {}, "spec.model.base: missing; it says:"),
        ("spec.model.base", 3, "spec.model.base: input should be a valid string, found 3"),
        (
            "spec.model.base",
            "ftp://host/model",
            "spec.model.base: unknown scheme 'ftp'; write s3://, gs://, az://, https://, hf:, pypi: or a path",
        ),
        ("spec.evaluate.base", {"humour": 1}, "evaluate.base: unknown attribute 'humour'; did you mean humor?"),
        ("spec.evaluate.base", {"humor": 5}, "evaluate.base: humor: label out of range: humor is 5"),
        ("spec.trainValue.globalBatchSize", 3, "globalBatchSize 3 must be a multiple of microBatchSize x data parallel size (2 x 1)"),
        ("spec.trainValue.precision", "16", "spec.trainValue.precision: input should be 'bf16' or '32', found '16'"),
        (
            "spec.trainValue.minLearningRate",
            6e-6,
            "spec.trainValue: learningRate 6e-06 must be above minLearningRate 6e-06: raise it, or lower the other",
        ),
        ("spec.trainSteer.learningRate", 1e-6, "spec.trainSteer: learningRate 1e-06 must be above minLearningRate 5e-06"),
        ("spec.bootstrap.require", {"quality": 5}, "bootstrap.require: quality: label out of range: quality is 5"),
        ("spec.bootstrap.require", {"qality": 4}, "bootstrap.require: unknown attribute 'qality'; did you mean quality?"),
        (
            "spec.attributes.preset",
            "oast",
            "attributes.preset: input should be 'oasst', 'helpsteer', 'steerlm9', 'nemotron' or 'paper'",
        ),
        ("spec.trainSteer.parallel", {"devices": 2, "tensor": 3}, "tensor x pipeline (3 x 1) must divide nodes x devices (1 x 2)"),
        ("spec.attributes", {"preset": "oasst", "custom": []}, "exactly one of preset and custom"),
        ("spec.attributes", {"custom": [{"name": "a", "low": 3, "high": 1}]}, "attribute a: need low < high"),
        (
            "spec.data.ratedText",
            {"files": [{"path": "x", "prompt": "?"}], "remove": "("},
            "spec.data.ratedText.remove: '(' is no regular expression: missing ), unterminated subpattern at position 0",
        ),
        ("spec.data.helpsteer", {"path": "x"}, "nemotron, sources, found oasst, helpsteer"),
        ("spec.serve", {"enabled": True}, "spec.serve: a server that stays needs a token, write token: {name: SECRET, key: KEY}"),
        ("spec.serve", {"enabled": True, "insecure": True, "token": {"name": "a", "key": "b"}}, "insecure: true where everybody who"),
        ("spec.attributes", {"custom": [{"name": "wit"}]}, "data.oasst: it has ratings of quality, toxicity, humor, creativity"),
        ("spec.attributes", {"custom": [{"name": "Quality"}]}, "and of none of spec.attributes; choose a preset that has one of them"),
        ("spec.data", {"ratedText": {"files": [{"path": "x", "prompt": "?"}]}}, "data.ratedText: it names no ratings"),
        ("spec.data", {"ratedText": {"files": [{"path": "x"}]}}, "give exactly one of prompt and promptColumn"),
        ("metadata.name", "Upper", "metadata.name: string should match pattern"),
        ("apiVersion", "v1", "apiVersion: input should be 'steerlm.dev/v1alpha1', found 'v1'"),
    ],
)
def test_a_mistake_is_named_with_what_to_write_instead(path, value, sentence):
    with pytest.raises(UsageError) as error:
        parse(with_field(path, value), "m.yaml")
    assert str(error.value).startswith("m.yaml: ")
    assert sentence in str(error.value)
    assert error.value.exit_code == 2


def test_every_mistake_is_named_at_once():
    manifest = with_field("spec.trainValue.maxStep", 3)
    manifest["spec"]["evaluat"] = {}
    with pytest.raises(UsageError) as error:
        parse(manifest, "m.yaml")
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("a: [", "not YAML"), ("", "expected one YAML document"), ("a: 1\n---\nb: 1\n", "found 2"), ("a: 1\na: 2\n", "m.yaml:2: the key")],
)
def test_a_file_that_is_no_manifest(tmp_path, text, sentence):
    file = tmp_path / "m.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=sentence):
        load(file)


def test_a_mistake_in_a_file_is_named_with_its_line(tmp_path):
    file = tmp_path / "m.yaml"
    spec = "spec:\n  attributes: {preset: oasst}\n  data: {oasst: {path: t}}\n  model:\n    base: b\n"
    spec += "  evaluate:\n    base:\n      humor: yes\n"
    file.write_text(
        f"apiVersion: steerlm.dev/v1alpha1\nkind: SteerLMPipeline\nmetadata: {{name: a}}\n{spec}  resources: {{train: {{cpu: 4}}}}\n"
    )
    with pytest.raises(UsageError) as error:
        load(file)
    assert str(error.value).splitlines() == [
        f'{file}:12: spec.resources.train.cpu: input should be a valid string, found 4; put it in quotes: "4"',
        f"{file}:11: spec.evaluate.base.humor: input should be a valid integer, found yes, which is the boolean true",
    ]


def test_what_a_cluster_adds_is_passed_over(tmp_path):
    """``kubectl get steerlmpipeline NAME -o yaml`` is a manifest."""
    exported = {**SMALLEST, "metadata": {"name": "small", "resourceVersion": "12", "managedFields": []}, "status": {"phase": "Succeeded"}}
    file = tmp_path / "m.yaml"
    file.write_text(yaml.safe_dump(exported))
    assert load(file).spec == parse(SMALLEST, "m").spec


def test_a_missing_file(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        load(tmp_path / "none.yaml")


def test_what_is_loaded_is_what_was_written(tmp_path):
    file = tmp_path / "m.yaml"
    file.write_text(yaml.safe_dump(SMALLEST))
    assert load(file) == parse(SMALLEST, "m")
