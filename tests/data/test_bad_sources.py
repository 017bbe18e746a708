"""Data that cannot be used is named with its place, or set aside; a source that cannot be meant is refused before it is read."""

from __future__ import annotations

import pyarrow
import pytest
from pyarrow import parquet

from nemo_steerlm.core.errors import DataError, UsageError
from nemo_steerlm.data.record_files import RecordFiles
from nemo_steerlm.pipeline.manifest import parse
from tests.data.reading_sources import MESSAGES, RATINGS, read, read_again, written
from tests.pipeline.manifests import with_field

BAD = {
    "responses": ("argilla", {"prompt": "Hi", "response": "Ho", "scores.overall": 3}, "scores.overall: no responses of Argilla"),
    "option": (
        "argilla",
        {"prompt": "Hi", "response": "Ho", "scores.overall.responses": ["good"]},
        "scores.overall: rating is 'good'; write a number",
    ),
    "no list": ("argilla", {"prompt": "Hi", "response": "Ho", "scores.overall.responses": 3}, "scores.overall.responses: no responses"),
    "statuses": (
        "argilla",
        {"prompt": "Hi", "response": "Ho", "scores.overall.responses": [3, 4], "scores.overall.responses.status": ["submitted"]},
        "scores.overall.responses: no responses of Argilla; write a list of responses, and one of as many statuses",
    ),
    "one response": (
        "argilla",
        {"prompt": "Hi", "response": "Ho", "scores.overall": {"value": 3, "user_id": "a"}},
        "no responses of Argilla",
    ),
    "columns": ("argilla", {"prompt": "Hi", "response": "Ho", "scores.overall": {"value": [3], "user_id": []}}, "no responses of Argilla"),
    "annotations": (
        "ultrafeedback",
        {"instruction": "Hi", "completions": [{"response": "Ho", "annotations": ["4"]}]},
        "completions[0].annotations: annotations is ['4']; write an object",
    ),
    "aspect": (
        "ultrafeedback",
        {"instruction": "Hi", "completions": [{"response": "Ho", "annotations": {"honesty": 4}}]},
        "completions[0].annotations.honesty: honesty is 4; write an object",
    ),
    "lengths": ("distilabel", {"instruction": "Hi", "generations": ["a"], "scores.overall": [1, 2]}, "2 ratings of 1 generations"),
    "generation": ("distilabel", {"instruction": "Hi", "generations": [3]}, "generations[0]: generation is 3; write a string"),
    "rendered": ("nemotron", {"input": "<|start_header_id|>user", "output": "a"}, "input: input is a rendered prompt"),
    "tool": ("messages", {"messages": [{"role": "tool", "content": "3"}]}, "messages[0].role: role 'tool' is not supported"),
    "call": ("messages", {"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "a call of a tool is not supported"),
    "silent call": (
        "messages",
        {"messages": [MESSAGES[1], {"role": "assistant", "content": "", "tool_calls": [{"id": "x"}]}]},
        "messages[1]: a call of a tool is not supported",
    ),
    "image": (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages[0].content: part of type 'image_url' is not supported",
    ),
    "empty": ("messages", {"messages": []}, "no answer"),
    "alone": ("messages", {"messages": [{"role": "assistant", "content": "A"}]}, "no question"),
    "key": ("messages", {"message": MESSAGES}, "messages: missing key 'messages'; did you mean message?"),
    "rating": ("messages", {"messages": MESSAGES, "scores": {"overall": "good"}}, "scores.overall: rating is 'good'; write a number"),
    "boolean": ("messages", {"messages": MESSAGES, "scores": {"overall": True}}, "scores.overall: rating is True; write a number"),
    "control": ("sharegpt", {"conversations": [{"from": "human", "value": "<extra_id_1>"}, {"from": "gpt", "value": ""}]}, "control token"),
    "role": ("sharegpt", {"conversations": [{"from": "observation", "value": "x"}]}, "role 'observation' is not supported"),
    "turn": ("sharegpt", {"conversations": ["x"]}, "conversations[0]: turn is 'x'"),
    "history": ("alpaca", {"history": [["a"]], "instruction": "a", "output": "b"}, "history[0]: pair is ['a']"),
    "histories": ("alpaca", {"history": 5, "instruction": "a", "output": "b"}, "history: history is 5; write a list"),
    "half": ("alpaca", {"instruction": "a"}, "output: missing key 'output'"),
    "json": ("alpaca", "{", "broken JSON"),
    "twice": ("alpaca", '{"instruction": "a", "output": "b", "output": "c"}', "the key 'output' stands twice in one object; keep one"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_named_or_set_aside(tmp_path, name):
    kind, row, sentence = BAD[name]
    good = {
        "messages": MESSAGES,
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}],
        "instruction": "Hi",
        "output": "Hello.",
        "generation": "Hello.",
        "completions": [{"response": "Hello.", "annotations": {"honesty": {"Rating": "4"}}}],
        "prompt": "Hi",
        "response": "Hello.",
    }
    fields = {} if kind in ("nemotron", "ultrafeedback") else {"ratings": RATINGS}
    with pytest.raises(DataError) as error:
        read(kind, tmp_path, [good, row], **fields)
    assert f"{tmp_path}/data.jsonl:2: " in str(error.value)
    assert sentence in str(error.value)
    assert len(read(kind, tmp_path, [row, good], on_error="skip", **fields)) == 1
    assert len((tmp_path / "out.rejected.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[", "broken JSON array"),
        ("[]", "an empty array"),
        ("[3]", r"\[0\]: not an object: 3"),
        ("", "empty file"),
        ('[{"a": 1}, {', "broken JSON array"),
        ('[{"messages": 1, "messages": 2}]', r"\[0\]: the key 'messages' stands twice in one object"),
    ],
)
def test_an_array_that_is_none(tmp_path, text, sentence):
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(DataError, match=f"missing key|{sentence}"):
        read_again(path)


def test_two_columns_of_one_name_are_no_row(tmp_path):
    path = tmp_path / "data.parquet"
    parquet.write_table(pyarrow.table([["a"], ["b"]], names=["messages", "messages"]), path)
    with pytest.raises(DataError, match="several columns are called 'messages'; name each differently"):
        read_again(path)


def test_a_torn_table_is_named(tmp_path):
    path = written(tmp_path, [{"messages": [{"role": "user", "content": "x" * 999}]}], "parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="broken Parquet"):
        read_again(path)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"messages": {"path": "x"}}, "spec.data.messages.ratings: missing"),
        ({"messages": {"path": "x", "ratings": {}}}, "at least 1 item"),
        (
            {"messages": {"path": "x", "ratings": {"qualty": {"key": "s", "range": [1, 5]}}}},
            "unknown attribute 'qualty'; did you mean quality",
        ),
        ({"alpaca": {"path": "x", "ratings": {"quality": {"key": "s", "range": [1, 1]}}}}, "range needs two different ratings"),
    ],
)
def test_a_source_without_ratings_is_refused_before_it_is_read(data, sentence):
    with pytest.raises(UsageError) as error:
        parse(with_field("spec.data", data), "m")
    assert sentence in str(error.value)


def test_data_that_nobody_rated_is_refused_with_what_there_is(tmp_path):
    placed = read("messages", tmp_path, [{"messages": MESSAGES}], ratings=RATINGS)
    with RecordFiles(tmp_path / "raw") as files, pytest.raises(DataError, match="the data has 1 conversations and no rated answer"):
        files.write(placed)
        files.require_rated()
