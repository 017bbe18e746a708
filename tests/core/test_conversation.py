"""Records go through conversations and come out as they were, and labels move as annotation moves them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_steerlm.core.conversation import Conversation, Turn
from nemo_steerlm.core.errors import DataError
from tests.core.records_for_tests import TEXTS, labels, ordinary_records

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=2), max_leaves=4
)
STRANGE = st.sampled_from(["lang", "gt_label", "label_source", "confidence", "tree_id", "x", "label_", "id"])


@st.composite
def records(draw: st.DrawFn) -> dict[str, object]:
    """Ordinary records with keys in any order, and keys of others that may be called as ours are."""
    record = draw(ordinary_records())
    record["conversations"] = [draw(extended(turn)) for turn in record["conversations"]]
    return draw(extended(record))


@st.composite
def extended(draw: st.DrawFn, made: dict[str, object]) -> dict[str, object]:
    whole = {**draw(st.dictionaries(STRANGE, ANYTHING, max_size=3)), **made}
    return {key: whole[key] for key in draw(st.permutations(list(whole)))}


@settings(max_examples=150)
@given(records())
def test_a_record_is_written_as_it_was_read_to_the_byte(record):
    assert json.dumps(Conversation.from_record(record).to_record()) == json.dumps(record)


def test_a_conversation_that_was_never_a_record_has_upstreams_keys_in_upstreams_order():
    turns = (Turn(speaker="User", text="a", label="quality:1", language="en"), Turn(speaker="Assistant", text="b"))
    record = Conversation(turns=turns, system="S", mode="TEXT_TO_VALUE", tree_id="t").to_record()
    assert json.dumps(record) == json.dumps(
        {
            "conversations": [
                {"value": "a", "from": "User", "label": "quality:1", "lang": "en"},
                {"value": "b", "from": "Assistant"},
            ],
            "tree_id": "t",
            "system": "S",
            "mask": "User",
            "type": "TEXT_TO_VALUE",
        }
    )
    assert list(Conversation(turns=turns, system="S").to_record()) == ["conversations", "system", "mask"]


@settings(max_examples=50)
@given(TEXTS, labels(), labels(), labels())
def test_labels_move_as_a_conversation_is_labelled(text, human, first, second):
    turn = Turn(speaker="Assistant", text=text, label=human)
    once = turn.predicted(first, "m1", {"quality": 0.5})
    assert (once.label, once.gt_label, once.label_source, once.confidence) == (first, human, "m1", (("quality", 0.5),))
    twice = once.predicted(second, "m2")
    assert (twice.label, twice.gt_label, twice.label_source, twice.confidence) == (second, human, "m2", None)
    assert once.without_human_label() == once
    hidden = turn.without_human_label()
    assert (hidden.label, hidden.gt_label, hidden.human_label) == (None, human, human)
    assert hidden.without_human_label() == hidden


def test_a_server_sees_texts_and_labels_and_nothing_else():
    """A person's label beside a turn that is to be labelled must not reach the server that predicts it."""
    record = {
        "conversations": [
            {"from": "User", "value": "a", "label": "quality:1", "id": 3},
            {"from": "Assistant", "value": "b", "gt_label": "quality:4", "label_source": "m", "confidence": {"quality": 1.0}, "lang": "en"},
        ],
        "system": "S",
        "mask": "User",
        "tree_id": "t",
        "secret": "x",
    }
    seen = Conversation.from_record(record).to_prompt_record()
    assert seen == {
        "conversations": [{"value": "a", "from": "User", "label": "quality:1"}, {"value": "b", "from": "Assistant"}],
        "system": "S",
        "mask": "User",
    }


def test_conversations_that_say_the_same_are_equal_whatever_their_records_have_besides():
    def read(**more: object) -> Conversation:
        return Conversation.from_record({"conversations": [{"from": "User", "value": "a", **more}], "system": "S", **more})

    assert read(x=1) == read(y=[2])
    assert len({read(x=1), read(y=[2]), read(label="quality:1")}) == 2


@pytest.mark.parametrize("key", ["value", "from"])
def test_a_turn_without_text_or_speaker_is_named(key):
    turn = {"from": "User", "value": "a"}
    del turn[key]
    with pytest.raises(DataError, match=rf"conversations\[0\].{key}: missing key"):
        Conversation.from_record({"conversations": [turn], "system": ""})
