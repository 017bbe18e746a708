"""Labels that are left out on purpose, and what a SteerLM model is taught under."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from nemo_steerlm.core.attributes import Attribute, AttributeSchema
from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.data.records import read_conversations, write_records
from nemo_steerlm.pipeline.artifacts import WorkDirectory
from nemo_steerlm.pipeline.manifest import parse
from nemo_steerlm.pipeline.run_context import Run
from nemo_steerlm.pipeline.stages import find, stages
from nemo_steerlm.pipeline.steps.taught_labels import dropped, label_support
from nemo_steerlm.pipeline.steps.train import taught_info
from nemo_steerlm.pipeline.train_spec import SteerTrainSpec
from tests.pipeline.manifests import with_field

SCHEMA = AttributeSchema(attributes=(Attribute(name="quality"), Attribute(name="humor")), languages=("en", "es"))


def record(n, label="quality:4,humor:1,lang:es"):
    turns = [
        {"from": "User", "value": f"Q{n}", "label": "quality:2"},
        {"from": "Assistant", "value": "A", "label": label, "confidence": {"quality": 0.5}},
        {"from": "User", "value": "R"},
        {"from": "Assistant", "value": "B", "label": "quality:0,humor:0,lang:es"},
    ]
    return {"system": "S", "mask": "User", "type": "VALUE_TO_TEXT", "conversations": turns, "extra": n}


RECORDS = [record(n) for n in range(400)]


def spec(**fields):
    return SteerTrainSpec.model_validate(fields)


def labels(records):
    return [[turn.get("label") for turn in r["conversations"]] for r in records]


def test_without_dropout_nothing_changes():
    assert list(dropped(RECORDS, spec(), SCHEMA)) == RECORDS


def test_whole_records_lose_their_labels_and_nothing_else():
    made = list(dropped(RECORDS, spec(labelDropout=0.25), SCHEMA))
    kinds = Counter(map(tuple, labels(made)))
    assert set(kinds) == {(None, None, None, None), tuple(labels(RECORDS)[0])}
    assert 0.2 < kinds[None, None, None, None] / 400 < 0.3
    texts = [[(turn["from"], turn["value"]) for turn in r["conversations"]] for r in made]
    assert texts == [[(turn["from"], turn["value"]) for turn in r["conversations"]] for r in RECORDS]
    assert [r["extra"] for r in made] == list(range(400))
    assert RECORDS[0]["conversations"][1]["label"], "the records that were given stay as they are"


def test_the_seed_decides_which():
    one = spec(labelDropout=0.25, attributeDropout=0.25)
    again, other = (
        spec(labelDropout=0.25, attributeDropout=0.25),
        spec(labelDropout=0.25, attributeDropout=0.25, seed=2),
    )
    assert list(dropped(RECORDS, one, SCHEMA)) == list(dropped(RECORDS, again, SCHEMA))
    assert labels(dropped(RECORDS, one, SCHEMA)) != labels(dropped(RECORDS, other, SCHEMA))


def test_attributes_are_left_out_one_by_one_and_the_language_stays():
    made = labels(dropped(RECORDS, spec(attributeDropout=0.3), SCHEMA))
    kinds = Counter(of_record[1] for of_record in made)
    assert set(kinds) == {"quality:4,humor:1,lang:es", "quality:4,lang:es", "humor:1,lang:es", "lang:es"}
    assert kinds["quality:4,humor:1,lang:es"] == max(kinds.values())
    assert {of_record[0] for of_record in made} == {"quality:2", None}, "a label with nothing left is none"


def test_support_counts_what_stands_in_the_records_and_what_was_taught_without_label(tmp_path):
    source, taught = tmp_path / "source.jsonl", tmp_path / "taught.jsonl"
    write_records(source, RECORDS[:10])
    write_records(taught, dropped(RECORDS[:10], spec(labelDropout=0.5), SCHEMA))
    found = label_support(source, taught, SCHEMA, partial=False)
    assert found.combinations == {"quality:4,humor:1": 10, "quality:0,humor:0": 10}
    assert found.labels == 20, "the user's labels teach no text"
    dropped_records = sum(c.turns[1].label is None for c in read_conversations(taught))
    assert 0 < found.unlabelled == 2 * dropped_records < 20


def run_of(tmp_path, stage, **fields):
    content = with_field("spec.trainSteer", fields)
    content["spec"]["attributes"] = {"custom": [{"name": "quality"}, {"name": "humor"}], "languages": ["en", "es"]}
    content["spec"]["bootstrap"] = {"rounds": 1, "requireAny": True}
    pipeline = parse(content, "m")
    work = WorkDirectory(tmp_path)
    found = find(stages(pipeline), stage)
    for source in ("annotate", "bootstrap-1-sample"):
        work.folder(source).mkdir(exist_ok=True)
        write_records(work.folder(source) / "train.jsonl", RECORDS[:20])
    work.folder(stage).mkdir(exist_ok=True)
    return Run(pipeline=pipeline, stage=found, work=work, manifest=tmp_path / "m.yaml", servers={})


def test_a_trained_model_says_what_it_was_taught_and_a_round_adds_to_it(tmp_path):
    run = run_of(tmp_path, "train-steer", labelDropout=0.5, attributeDropout=0.1)
    info = taught_info(run, run.stage.training)
    assert (info.support.labels, info.support.partial) == (40, True)
    assert 0 < info.support.unlabelled < 40
    written = tmp_path / "train-steer" / "records" / "train.jsonl"
    assert [json.loads(line) for line in written.read_text().splitlines()] == list(dropped(RECORDS[:20], run.stage.training.spec, SCHEMA))
    model = tmp_path / "train-steer" / "hf"
    model.mkdir()
    info.save(model)
    assert ModelInfo.load(model) == info
    later = run_of(tmp_path, "bootstrap-1-train", labelDropout=0.5)
    assert taught_info(later, later.stage.training).support.labels == 80


def test_a_training_without_dropout_learns_from_its_input_and_a_value_model_has_no_support(tmp_path):
    run = run_of(tmp_path, "train-steer")
    assert taught_info(run, run.stage.training).support.unlabelled == 0
    assert not (tmp_path / "train-steer" / "records").exists()
    value = run_of(tmp_path, "train-value")
    assert b"support" not in json.dumps(taught_info(value, value.stage.training).to_dict()).encode()


def test_only_the_steer_model_s_labels_can_be_left_out():
    with pytest.raises(UsageError, match="labelDropout"):
        parse(with_field("spec.trainValue.labelDropout", 0.1), "m")
    with pytest.raises(UsageError, match="labelDropout"):
        parse(with_field("spec.trainSteer.labelDropout", 1.0), "m")
