"""Data as people have it becomes conversations with the right turns, system prompt, ratings and split."""

from __future__ import annotations

import collections
import sys

import pytest

from nemo_steerlm.core.conversation import SYSTEM_PROMPT
from nemo_steerlm.core.extras import missing_extra
from nemo_steerlm.data.sources import SOURCES
from nemo_steerlm.data.sources.source import weighted
from nemo_steerlm.pipeline.manifest import parse
from nemo_steerlm.pipeline.sources import DataSource
from tests.data.reading_sources import MESSAGES, RATINGS, TURNS, read, read_again, told, written
from tests.pipeline.manifests import with_field


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
        [entry] = spec.data.entries
        assert (entry.name, entry.weight, entry.source.references()) == (kind, 1.0, ("x",))
