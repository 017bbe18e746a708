"""Data as people have it becomes conversations with the right turns, system prompt, ratings and split; what cannot be used is named."""

from __future__ import annotations

import collections
import gzip
import json
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from nemo_steerlm.core.attributes import Attribute, AttributeSchema
from nemo_steerlm.core.conversation import SYSTEM_PROMPT
from nemo_steerlm.core.errors import DataError, UsageError
from nemo_steerlm.core.extras import missing_extra
from nemo_steerlm.core.template import ChatTokens
from nemo_steerlm.data.record_files import RecordFiles
from nemo_steerlm.data.rejects import Rejects
from nemo_steerlm.data.sources import SOURCES
from nemo_steerlm.data.sources.source import SourceContext, weighted
from nemo_steerlm.pipeline.manifest import parse
from nemo_steerlm.pipeline.sources import DataSource
from tests.pipeline.manifests import with_field

SCHEMA = AttributeSchema(attributes=(Attribute(name="quality"), Attribute(name="honesty", low=1, high=5, default=1)))
RATINGS = {"quality": {"key": "scores.overall", "range": [1, 5]}}


def written(folder: Path, rows: list[object], form: str = "jsonl") -> Path:
    path = folder / f"data.{form}"
    if form == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif form == "json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8-sig")
    else:
        data = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if form == "gz" else data)
    return path


def read(
    kind: str,
    folder: Path,
    rows: list[object],
    form: str = "jsonl",
    on_error: str = "fail",
    system: str | None = None,
    left_out: collections.Counter[str] | None = None,
    **fields: object,
):
    left_out = collections.Counter() if left_out is None else left_out
    path = written(folder, rows, form)
    source = SOURCES[kind].model_validate({"path": str(path), **fields})
    with Rejects(folder / "out", on_error) as rejects:
        reading = SourceContext(
            resolve=Path, schema=SCHEMA, rejects=rejects, folder=folder, tokens=ChatTokens(), system=system, left_out=left_out
        )
        return list(source.read(reading))


def told(placed):
    """Turns as (speaker, text, label) of each conversation."""
    return [[(turn.speaker, turn.text, turn.label) for turn in place.conversation.turns] for place in placed]


MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "now?"}]},
    {"role": "assistant", "content": "Bye."},
]
TURNS = [("User", "Hi", None), ("Assistant", "Hello.", None), ("User", "And now?", None), ("Assistant", "Bye.", "quality:4")]


@pytest.mark.parametrize("form", ["jsonl", "gz", "json"])
def test_messages(tmp_path, form):
    [place] = read("messages", tmp_path, [{"messages": MESSAGES, "scores": {"overall": 5}}], form, ratings=RATINGS)
    assert told([place]) == [TURNS]
    assert (place.conversation.system, place.teaches, place.to_label) == ("Be kind.", True, True)


def test_messages_in_parquet(tmp_path):
    rows = [
        {"chat": [{"role": "user", "content": f"Q{i}"}, {"role": "assistant", "content": "A"}], "score": score}
        for i, score in enumerate([1.0, None, 9.0])
    ]
    placed = read("messages", tmp_path, rows, "parquet", messages="chat", ratings={"quality": {"key": "score", "range": [5, 1]}})
    assert [turns[1][2] for turns in told(placed)] == ["quality:4", None, "quality:0"], "a reversed range, and one clamped"
    assert [place.teaches for place in placed] == [True, False, True], "what nobody rated is only labelled"


def test_parquet_without_pyarrow_is_one_line(tmp_path, monkeypatch):
    path = written(tmp_path, [{"messages": []}], "parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError) as missing:
        read_again(path)
    assert str(missing_extra(missing.value)) == "this needs pyarrow, which is not installed: pip install 'nemo_steerlm[data]'"


def read_again(path: Path) -> None:
    source = SOURCES["messages"].model_validate({"path": str(path), "ratings": RATINGS})
    with Rejects(path.parent / "out") as rejects:
        list(source.read(SourceContext(resolve=Path, schema=SCHEMA, rejects=rejects, folder=path.parent)))


def test_sharegpt(tmp_path):
    said = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
    rows = [
        {"conversations": said, "scores": {"overall": "2"}},
        {"conversations": [{"from": "system", "value": "S1"}, *said], "scores": {"overall": 3}},
        {"conversations": said, "system": "S2"},
    ]
    placed = read("sharegpt", tmp_path, rows, ratings=RATINGS, system="S0")
    assert told(placed) == [[("User", "Hi", None), ("Assistant", "Hello.", label)] for label in ("quality:1", "quality:2", None)]
    assert [place.conversation.system for place in placed] == ["S0", "S1", "S2"]


def test_alpaca(tmp_path):
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3", "scores": {"overall": 4}},
        {"instruction": "And?", "input": "", "output": "Yes.", "history": [["Hi", "Hello."]], "system": "S"},
    ]
    placed = read("alpaca", tmp_path, rows, ratings=RATINGS)
    assert told(placed) == [
        [("User", "Add.\n1 2", None), ("Assistant", "3", "quality:3")],
        [("User", "Hi", None), ("Assistant", "Hello.", None), ("User", "And?", None), ("Assistant", "Yes.", None)],
    ]
    assert [place.conversation.system for place in placed] == [SYSTEM_PROMPT, "S"]


def test_ultrafeedback_has_a_conversation_for_each_answer_in_one_split(tmp_path):
    def answer(text: str, honesty: str, score: float | None) -> dict[str, object]:
        return {
            "response": text,
            "annotations": {"honesty": {"Rating": honesty}, "helpfulness": {"Rating": "5"}},
            "fine-grained_score": score,
        }

    rows = [
        {"instruction": f"Q{i}", "completions": [answer("A", "2", 3.0), answer("B", "N/A", None), answer("C", "4", 5.0)]} for i in range(40)
    ]
    placed = read("ultrafeedback", tmp_path, rows, splitRatio=0.5)
    assert told(placed)[:3] == [
        [("User", "Q0", None), ("Assistant", text, label)]
        for text, label in (("A", "quality:2,honesty:2"), ("B", None), ("C", "quality:4,honesty:4"))
    ]
    splits = {}
    for place in placed:
        splits.setdefault(place.conversation.turns[0].text, set()).add(place.split)
    assert all(len(found) == 1 for found in splits.values())
    assert {split for found in splits.values() for split in found} == {"train", "val"}


def test_ultrafeedback_binarized(tmp_path):
    def chat(text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "Q"}, {"role": "assistant", "content": text}]

    rows = [{"prompt": "Q", "chosen": chat("good"), "rejected": chat("bad"), "score_chosen": 10.0, "score_rejected": 1.0}]
    placed = read("ultrafeedback", tmp_path, rows)
    assert [turns[1][1:] for turns in told(placed)] == [("good", "quality:4"), ("bad", "quality:0")]


QUESTION = {"quality": {"key": "q", "range": [1, 5]}}
NESTED = {"fields": {"prompt": "Hi", "response": "Hello."}, "metadata": {}, "vectors": {}, "status": "completed", "suggestions": {}}
ARGILLA = {
    # Argilla 2, nested; flat; Argilla 1, and as Arrow keeps its lists of objects.
    "nested": {**NESTED, "responses": {"q": [{"value": 5, "user_id": "a"}, {"value": 3, "user_id": "b"}]}},
    "flat": {
        "prompt": "Hi", "response": "Hello.", "q.responses": [5, 1, 3], "q.responses.users": ["a", "b", "c"],
        "q.responses.status": ["submitted", "draft", "submitted"],
    },
    "first": {
        "prompt": "Hi", "response": "Hello.",
        "q": [{"user_id": "a", "value": 5, "status": "submitted"}, {"user_id": "b", "value": 3, "status": "submitted"},
              {"user_id": "c", "value": 1, "status": "discarded"}],
    },
    "arrow": {"prompt": "Hi", "response": "Hello.", "q": {"user_id": ["a", "b"], "value": [5, 3], "status": ["submitted", "submitted"]}},
}  # fmt: skip


@pytest.mark.parametrize("shape", ARGILLA)
def test_argilla_means_what_people_submitted(tmp_path, shape):
    placed = read("argilla", tmp_path, [ARGILLA[shape]], ratings=QUESTION)
    assert told(placed) == [[("User", "Hi", None), ("Assistant", "Hello.", "quality:3")]], "the mean of 5 and 3 is 4 of 1 to 5"


def test_argilla_s_chats_systems_and_suggestions(tmp_path):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "And now?"}]
    row = {
        "fields": {"chat": chat, "a": "Bye.", "s": "S"},
        "responses": {},
        "suggestions": {"q": {"value": 5, "score": None, "agent": "m"}},
    }
    fields = {"promptField": "chat", "answerField": "a", "systemField": "s", "ratings": QUESTION}
    [place] = read("argilla", tmp_path, [row], **fields)
    assert told([place]) == [[*TURNS[:3], ("Assistant", "Bye.", None)]]
    assert (place.teaches, place.conversation.system) == (False, "S")
    assert told(read("argilla", tmp_path, [row], suggestions=True, **fields)) == [TURNS]


def test_distilabel(tmp_path):
    rows = [
        {"instruction": "Hi", "generations": ["Hello.", None, "What?"], "ratings": [5, None, None], "system_prompt": "S"},
        {"messages": [{"role": "user", "content": "Hi"}], "generation": "Hey.", "ratings": "2"},
    ]
    placed = read("distilabel", tmp_path, rows, ratings={"quality": {"key": "ratings", "range": [1, 5]}})
    answers = (("Hello.", "quality:4"), ("What?", None), ("Hey.", "quality:1"))
    assert told(placed) == [[("User", "Hi", None), ("Assistant", *answer)] for answer in answers]
    assert [place.conversation.system for place in placed] == ["S", "S", SYSTEM_PROMPT]


def test_nemotron_s_samples_are_only_labelled(tmp_path):
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello.", "tool_calls": []}]
    rows = [
        {"messages": said, "category": "chat", "reasoning": "off"},
        {"messages": said, "category": "chat", "reasoning": "on"},
        {"messages": said, "category": "math", "reasoning": "off"},
        {"input": [{"role": "user", "content": "Hi"}], "output": "Hey.", "category": "chat", "system_prompt": "S"},
        {"input": "Hi", "output": "Ho.", "category": "chat", "reasoning": "off"},
    ]
    left_out = collections.Counter()
    placed = read("nemotron", tmp_path, rows, categories=["chat"], left_out=left_out)
    assert told(placed) == [[("User", "Hi", None), ("Assistant", text, None)] for text in ("Hello.", "Hey.", "Ho.")]
    assert [(place.teaches, place.to_label) for place in placed] == [(False, True)] * 3
    assert left_out == {"reasoning is on": 1, "another category": 1}
    assert len(read("nemotron", tmp_path, rows, reasoning="any")) == 5


def test_a_weight_repeats_and_thins_what_trains(tmp_path):
    rows = [{"instruction": f"Q{i}", "output": "A", "scores": {"overall": 3}} for i in range(400)]
    placed = read("alpaca", tmp_path, rows, ratings=RATINGS, splitRatio=0.75)
    train = [place for place in placed if place.split == "train"]
    for weight in (0.5, 1.0, 2.0, 2.5):
        found = list(weighted(placed, weight))
        counts = collections.Counter(place.conversation.turns[0].text for place in found)
        assert [place for place in found if place.split == "val"] == [place for place in placed if place.split == "val"]
        assert {counts[place.conversation.turns[0].text] for place in train} == {int(weight), -int(-weight // 1)}
        assert abs(len(found) - len(placed) - (weight - 1) * len(train)) < 40
        assert found == list(weighted(placed, weight))


BAD = {
    "responses": ("argilla", {"prompt": "Hi", "response": "Ho", "scores.overall": 3}, "scores.overall: no responses of Argilla"),
    "option": (
        "argilla",
        {"prompt": "Hi", "response": "Ho", "scores.overall.responses": ["good"]},
        "scores.overall: rating is 'good'; write a number",
    ),
    "lengths": ("distilabel", {"instruction": "Hi", "generations": ["a"], "scores.overall": [1, 2]}, "2 ratings of 1 generations"),
    "generation": ("distilabel", {"instruction": "Hi", "generations": [3]}, "generations[0]: generation is 3; write a string"),
    "rendered": ("nemotron", {"input": "<|start_header_id|>user", "output": "a"}, "input: input is a rendered prompt"),
    "tool": ("messages", {"messages": [{"role": "tool", "content": "3"}]}, "messages[0].role: role 'tool' is not supported"),
    "call": ("messages", {"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "a call of a tool is not supported"),
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
        "prompt": "Hi",
        "response": "Hello.",
    }
    fields = {} if kind == "nemotron" else {"ratings": RATINGS}
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


def test_every_source_of_the_registry_is_in_the_manifest():
    assert set(SOURCES) < set(DataSource.model_fields)
    ratings = {"quality": {"key": "score", "range": [1, 10]}}
    for kind, fields in {
        "messages": {"ratings": ratings},
        "sharegpt": {"ratings": ratings},
        "alpaca": {"ratings": ratings},
        "ultrafeedback": {},
        "argilla": {"ratings": ratings},
        "distilabel": {"ratings": ratings},
    }.items():
        spec = parse(with_field("spec.data", {kind: {"path": "x", **fields}}), "m").spec
        [part] = spec.data.parts
        assert (part.name, part.weight, part.source.references()) == (kind, 1.0, ("x",))


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
