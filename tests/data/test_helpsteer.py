"""HelpSteer's layouts become upstream-shaped records."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from nemo_steerlm.core.attributes import Attribute, AttributeSchema, preset
from nemo_steerlm.core.errors import DataError, UsageError
from nemo_steerlm.core.template import ChatTokens
from nemo_steerlm.data.rejects import Rejects
from nemo_steerlm.data.sources.helpsteer import HelpSteerSource
from nemo_steerlm.data.sources.source import SourceContext

RATED = {"prompt": "c#", "response": "A language.", "helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 1}
PAIR = {"split": "train", "prompt": "c#", "response_1": "A.", "response_2": "B.", "preference_strength": -2}


def folder_with(tmp_path: Path, name: str, *rows: object) -> Path:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    if name.startswith("train"):
        (tmp_path / "validation.jsonl").write_text(json.dumps(RATED) + "\n")
    return tmp_path


HELPSTEER = preset("helpsteer")
STRENGTH = AttributeSchema(attributes=(Attribute(name="quality", low=-3, high=3),))


def read(folder: Path, split="train", *, schema=HELPSTEER, on_error="fail", **source):
    """The records of one split, as they are written."""
    with Rejects(folder / "out", on_error) as rejects:
        reading = SourceContext(resolve=Path, schema=schema, rejects=rejects, folder=folder, tokens=ChatTokens())
        placed = list(HelpSteerSource(path=str(folder), **source).read(reading))
    assert all(place.teaches and place.to_label for place in placed)
    return [place.conversation.to_record() for place in placed if place.split == split]


def test_ratings_become_one_label_on_the_answer(tmp_path):
    [record] = read(folder_with(tmp_path, "train.jsonl.gz", RATED))
    assert record["conversations"] == [
        {"value": "c#", "from": "User"},
        {"value": "A language.", "from": "Assistant", "label": "helpfulness:3,correctness:4,coherence:4,complexity:2,verbosity:1"},
    ]
    assert record["mask"] == "User"


def test_a_pair_becomes_two_records_with_the_same_strength(tmp_path):
    folder = folder_with(tmp_path, "preference/preference.jsonl", PAIR, {**PAIR, "split": "validation", "preference_strength": 3})
    found = [r["conversations"][1] for r in read(folder, schema=STRENGTH, preference=True)]
    assert found == [{"value": v, "from": "Assistant", "label": "quality:-2"} for v in ("A.", "B.")]
    assert [r["conversations"][1]["label"] for r in read(folder, "val", schema=STRENGTH, preference=True)] == ["quality:3"] * 2


def test_a_prompt_of_several_turns_becomes_turns_and_passes_the_control_token_check(tmp_path):
    prompt = "Hi\n\n<extra_id_1>Assistant\nHello\n\n<extra_id_1>User\nc#"
    [record] = read(folder_with(tmp_path, "train.jsonl", {**RATED, "prompt": prompt}))
    assert [(t["from"], t["value"]) for t in record["conversations"]] == [
        ("User", "Hi"),
        ("Assistant", "Hello"),
        ("User", "c#"),
        ("Assistant", "A language."),
    ]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"helpfulness": 5}, "1: helpfulness: label out of range: helpfulness is 5"),
        ({"helpfulness": "4"}, "1: helpfulness: helpfulness is '4'; write a whole number"),
        ({"helpfulness": True}, "1: helpfulness: helpfulness is True; write a whole number"),
        ({"helpfulness": 3.5}, "1: helpfulness: helpfulness is 3.5; write a whole number"),
        (dict.fromkeys(preset("helpsteer").names), "1: no ratings; write at least one of helpfulness"),
        ({"response": None}, "1: response: response is None; write a string"),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, sentence):
    with pytest.raises(DataError) as error:
        read(folder_with(tmp_path, "train.jsonl", {**RATED, **change}))
    assert sentence in str(error.value)


def test_a_pair_is_whole_or_absent(tmp_path):
    """A second answer that cannot be used takes the first along."""
    folder = folder_with(
        tmp_path,
        "preference/preference.jsonl",
        {**PAIR, "response_2": None},
        PAIR,
        {**PAIR, "split": "validation"},
        {**PAIR, "split": "test"},
    )
    found = read(folder, schema=STRENGTH, preference=True, on_error="skip")
    assert [record["conversations"][1]["value"] for record in found] == ["A.", "B."]
    [rejected] = (tmp_path / "out.rejected.jsonl").read_text().splitlines()
    assert json.loads(rejected)["field"] == "response_2"


@pytest.mark.parametrize(
    ("ratings", "label"),
    [
        ({"helpfulness": 3.0, "verbosity": 1.0}, "helpfulness:3,correctness:4,coherence:4,complexity:2,verbosity:1"),
        ({"helpfulness": None, "verbosity": float("nan")}, "correctness:4,coherence:4,complexity:2"),
    ],
)
def test_ratings_as_tables_write_them(tmp_path, ratings, label):
    """Whole numbers as floats, as pandas writes a column with gaps; what is not there is absent from the label, never zero."""
    [record] = read(folder_with(tmp_path, "train.jsonl", {**RATED, **ratings}))
    assert record["conversations"][1]["label"] == label


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("helpsteer", "helpfulness:3,correctness:4,coherence:4,complexity:2,verbosity:1"),
        ("oasst", "helpfulness:3"),
        ("steerlm9", "helpfulness:3,correctness:4,coherence:4,complexity:2,verbosity:1"),
        ("nemotron", "correctness:4,coherence:4,complexity:2,verbosity:1,helpfulness:3"),
        ("paper", "helpfulness:7"),
    ],
)
def test_labels_are_the_schemas_in_its_order_and_on_its_scale(tmp_path, name, label):
    [record] = read(folder_with(tmp_path, "train.jsonl", RATED), schema=preset(name))
    assert record["conversations"][1]["label"] == label


@pytest.mark.parametrize(("low", "high", "quality"), [(-3, 3, -2), (0, 6, 1), (0, 3, 0)])
def test_preferences_are_on_the_schemas_scale(tmp_path, low, high, quality):
    schema = AttributeSchema(attributes=(Attribute(name="quality", low=low, high=high, default=high),))
    found = read(
        folder_with(tmp_path, "preference/preference.jsonl", PAIR, {**PAIR, "split": "validation"}), schema=schema, preference=True
    )
    assert [record["conversations"][1]["label"] for record in found] == [f"quality:{quality}"] * 2


def test_helpsteer3_is_refused_by_name(tmp_path):
    for part in ("preference", "edit", "edit_quality", "feedback", "principle"):
        folder = folder_with(tmp_path / part, f"{part}/train.jsonl.gz", {"context": []})
        with pytest.raises(UsageError, match=f"{part} of HelpSteer3 is not supported: .* use hf:nvidia/HelpSteer2"):
            read(folder)
    folder = folder_with(tmp_path / "rows", "train.jsonl", {"context": [], "response1": "a", "response2": "b", "overall_preference": 1})
    for path in (folder, folder / "train.jsonl"):
        with pytest.raises(DataError, match=r"train\.jsonl:1: preference of HelpSteer3 is not supported"):
            read(path)


def test_one_file_is_no_training_and_validation(tmp_path):
    folder = folder_with(tmp_path, "train.jsonl", RATED)
    with pytest.raises(UsageError, match=r"train\.jsonl: one file, .*; name the folder that has train\.jsonl and validation\.jsonl"):
        read(folder / "train.jsonl")


def test_an_absent_split_is_named(tmp_path):
    folder = folder_with(tmp_path, "train.jsonl", RATED)
    (folder / "validation.jsonl").unlink()
    with pytest.raises(UsageError, match=r"no validation\.jsonl or validation\.jsonl\.gz"):
        read(folder)
