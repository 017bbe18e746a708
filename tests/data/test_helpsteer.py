"""HelpSteer's layouts become upstream-shaped records."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from nemo_steerlm.core.errors import DataError, UsageError
from nemo_steerlm.core.template import ChatTokens
from nemo_steerlm.data.helpsteer import Reading, read_helpsteer
from nemo_steerlm.data.rejects import Rejects

RATED = {"prompt": "c#", "response": "A language.", "helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 1}
PAIR = {"split": "train", "prompt": "c#", "response_1": "A.", "response_2": "B.", "preference_strength": -2}


def folder_with(tmp_path: Path, name: str, *rows: object) -> Path:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return tmp_path


def read(folder: Path, split="train", **more):
    with Rejects(folder / "out") as rejects:
        return list(read_helpsteer(folder, split, rejects, **more))


def test_ratings_become_one_label_on_the_answer(tmp_path):
    [record] = read(folder_with(tmp_path, "train.jsonl.gz", RATED))
    assert record["conversations"] == [
        {"value": "c#", "from": "User"},
        {"value": "A language.", "from": "Assistant", "label": "helpfulness:3,correctness:4,coherence:4,complexity:2,verbosity:1"},
    ]
    assert (record["mask"], record["type"]) == ("User", "VALUE_TO_TEXT")


def test_a_pair_becomes_two_records_with_the_same_strength(tmp_path):
    folder = folder_with(tmp_path, "preference/preference.jsonl", PAIR, {**PAIR, "split": "validation", "preference_strength": 3})
    found = [r["conversations"][1] for r in read(folder, preference=True)]
    assert found == [{"value": v, "from": "Assistant", "label": "quality:-2"} for v in ("A.", "B.")]
    assert [r["conversations"][1]["label"] for r in read(folder, "validation", preference=True)] == ["quality:3"] * 2


def test_a_prompt_of_several_turns_becomes_turns_and_passes_the_control_token_check(tmp_path):
    prompt = "Hi\n\n<extra_id_1>Assistant\nHello\n\n<extra_id_1>User\nc#"
    [record] = read(folder_with(tmp_path, "train.jsonl", {**RATED, "prompt": prompt}), reading=Reading(tokens=ChatTokens()))
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
        ({"response": None}, "1: response: response is None; write a string"),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, sentence):
    with pytest.raises(DataError) as error:
        read(folder_with(tmp_path, "train.jsonl", {**RATED, **change}))
    assert sentence in str(error.value)


def test_an_absent_split_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"no validation\.jsonl or validation\.jsonl\.gz"):
        read(folder_with(tmp_path, "train.jsonl", RATED), "validation")
