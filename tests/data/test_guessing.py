"""What a file of ratings is taken for, and the pipeline that is written for it."""

from __future__ import annotations

import json

import pytest
from pydantic.alias_generators import to_snake

from nemo_steerlm.core.errors import DataError, UsageError
from nemo_steerlm.core.spec import from_plain
from nemo_steerlm.core.yaml_files import parse_yaml
from nemo_steerlm.data.guessing import Wishes, guess
from nemo_steerlm.data.sources import SOURCES
from nemo_steerlm.data.survey import survey
from nemo_steerlm.pipeline import drafting, manifest
from tests.data.shapes import SHAPES
from tests.inputs import OASST

SCALES = {
    "ratings.csv": {"helpfulness": (1, 5), "is_it_funny": (1, 5)},
    "tweets.tsv": {"rating_1": (0, 4)},
    "chats.jsonl": {"quality": (0, 4), "tone": (0, 4)},
    "argilla.json": {"quality": (1, 7)},
    "table.parquet": {"correctness": (0, 4), "complexity": (0, 2)},
}
FIELDS = {
    "ratings.csv": {"promptColumn": "Prompt", "textColumn": "Answer"},
    "tweets.tsv": {"header": False, "prompt": "Write a text.", "textColumn": "2"},
    "chats.jsonl": {},
    "argilla.json": {"promptField": "instruction", "answerField": "completion"},
    "table.parquet": {"promptColumn": "question", "textColumn": "response"},
}
KINDS = dict.fromkeys(SHAPES, "ratedText") | {"chats.jsonl": "messages", "argilla.json": "argilla"}
RATED = {"ratings.csv": 59, "tweets.tsv": 60, "chats.jsonl": 45, "argilla.json": 60, "table.parquet": 60}
"""Texts that have a rating of the first attribute: a row that lacks one of several ratings is left out of a table."""


def read_back(found, path, seen=None):
    """The pipeline that is written, as a run would read it."""
    if seen is None:
        seen = survey_of(found, path)
    draft = drafting.sized(seen, path.name, "base", attributes=found.schema.names, parameters=None)
    [document] = parse_yaml(drafting.manifest(draft, found, seen, str(path)), "m")
    return manifest.parse(document.value, "m", document.lines)


def survey_of(found, path):
    source = from_plain(SOURCES[to_snake(found.kind)], drafting.described(found, str(path)))
    return survey(source, found.schema, lambda _: path)


@pytest.mark.parametrize("name", SHAPES)
def test_five_shapes(tmp_path, name):
    path = tmp_path / name
    SHAPES[name](path)
    found = guess(path)
    assert (found.kind, found.fields) == (KINDS[name], FIELDS[name])
    assert {a.name: (a.low, a.high) for a in found.schema.attributes} == SCALES[name]
    seen = survey_of(found, path)
    assert sum(seen.levels[next(iter(SCALES[name]))].values()) == RATED[name]
    assert all(turn.label for conversation in seen.examples for turn in conversation.turns if turn.speaker == "Assistant")
    assert len(seen.examples) == 5
    pipeline = read_back(found, path, seen)
    spec = pipeline.spec
    assert spec.attributes.schema_().names == tuple(SCALES[name])
    assert spec.data.on_error == ("skip" if name == "ratings.csv" else "fail"), "a row has no rating"
    assert spec.train_value.global_batch_size <= seen.conversations["train"]
    assert spec.model.max_sequence_length >= 64


def test_ratings_keep_their_own_levels(tmp_path):
    path = tmp_path / "ratings.csv"
    SHAPES["ratings.csv"](path)
    seen = survey_of(guess(path), path)
    assert seen.levels["helpfulness"] == {1: 12, 2: 12, 3: 11, 4: 12, 5: 12}
    assert seen.thin()["helpfulness"] == seen.levels["helpfulness"]
    assert seen.rejected == {"rating is ''": 1}


def test_trees_are_known_by_their_keys():
    found = guess(OASST)
    assert (found.kind, found.preset) == ("oasst", "oasst")
    assert read_back(found, OASST).spec.attributes.preset == "oasst"


KNOWN = {
    "ultrafeedback": {"instruction": "Q", "completions": [{"response": "A", "annotations": {}, "fine-grained_score": 3.0}]},
    "distilabel": {"instruction": "Q", "generations": ["A", "B"], "ratings": [1, 5]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "score": 1},
    "alpaca": {"instruction": "Q", "input": "", "output": "A", "score": 1},
    "argilla": {"prompt": "How?", "response": "So.", "q.responses": [1, 5], "q.responses.users": ["a", "b"]},
}


@pytest.mark.parametrize("kind", KNOWN)
def test_other_shapes_are_known_by_their_keys(tmp_path, kind):
    path = tmp_path / "data.jsonl"
    other = {**KNOWN[kind], "score": 5} if "score" in KNOWN[kind] else KNOWN[kind]
    path.write_text(json.dumps(KNOWN[kind]) + "\n" + json.dumps(other) + "\n")
    assert guess(path).kind == kind


def test_a_chat_that_ends_with_a_question_is_a_prompt(tmp_path):
    """The answer that was rated is beside it, not the one that the chat already has."""
    path = tmp_path / "data.jsonl"
    chat = [{"role": role, "content": f"{role} says"} for role in ("user", "assistant", "user")]
    path.write_text("".join(json.dumps({"prompt": chat, "response": f"Answer {i}", "score": i % 5}) + "\n" for i in range(40)))
    found = guess(path)
    assert (found.kind, found.fields) == ("ratedText", {"promptColumn": "prompt", "textColumn": "response"})
    shown = survey_of(found, path).examples[0]
    assert [turn.text for turn in shown.turns] == ["user says", "assistant says", "user says", "Answer 0"]


@pytest.mark.parametrize(
    "row",
    [
        {"fields": {"prompt": "Q", "response": "A"}, "responses": {"quality": ["good", 3]}},
        {"prompt": "Q", "response": "A", "quality.responses": 3},
        {"prompt": "Q", "response": "A", "quality": [{"user_id": "a", "value": 1}, 3]},
        {"prompt": "Q", "response": "A", "quality": {"user_id": "a", "value": 3}},
        {"prompt": "Q", "response": "A", "completions": 3},
        {"messages": [{"role": "user", "content": "Q"}, "A"], "score": 3},
        {"messages": [3], "conversations": [], "score": True},
        {"instruction": 3, "output": None, "generations": {}},
        {"message_tree_id": 3},
    ],
)
def test_what_only_looks_like_a_known_shape_is_an_error_that_says_why(tmp_path, row):
    path = tmp_path / "data.jsonl"
    path.write_text((json.dumps(row) + "\n") * 3)
    with pytest.raises((UsageError, DataError)):
        survey_of(guess(path), path)


def test_what_a_person_says_wins(tmp_path):
    path = tmp_path / "ratings.csv"
    SHAPES["ratings.csv"](path)
    found = guess(path, Wishes(prompt="Answer", answer="Prompt", ratings=("annotator",)))
    assert found.fields == {"promptColumn": "Answer", "textColumn": "Prompt"}
    assert found.schema.names == ("annotator",)


@pytest.mark.parametrize(
    ("text", "wishes", "sentence"),
    [
        ("a;b\n1;2\n", {}, "its columns are separated by ';'"),
        ("text\nOne two three.\nFour five six.\n", {}, "no column of ratings found"),
        ("text,score\nOne two three.,1\nFour five six.,1\n", {}, "score has one value only"),
        ("x,score\n1,1\n2,2\n", {}, "no column of texts found"),
        ("text,score\nOne two three.,1\nFour five six.,2\n", {"ratings": ("scor",)}, "no column 'scor'; did you mean score?"),
        ("text,score\nOne two three.,1\nFour five six.,2\n", {"prompt": "txt"}, "no column 'txt'; did you mean text?"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, text, wishes, sentence):
    path = tmp_path / "data.csv"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        guess(path, Wishes(**wishes))
    assert sentence in str(error.value)


def test_helpsteer3_is_refused_by_name(tmp_path):
    """Its context is a chat and its preference a number, but that number rates no answer in the chat."""
    path = tmp_path / "preference" / "train.jsonl"
    path.parent.mkdir()
    turns = [
        {"role": "user", "content": "Name a planet."},
        {"role": "assistant", "content": "Mars"},
        {"role": "user", "content": "Another?"},
    ]
    rows = [{"context": turns, "response1": "Venus", "response2": "Pluto", "overall_preference": i % 7 - 3} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for given in (path, tmp_path):
        with pytest.raises((UsageError, DataError), match=r"preference of HelpSteer3 is not supported.* use hf:nvidia/HelpSteer2"):
            guess(given)
