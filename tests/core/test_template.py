"""Typed control strings stay text: escaping is reversible, nobody can add structure, and the mask covers exactly what is learned."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_steerlm.core.conversation import Conversation
from nemo_steerlm.core.encoding import encode_spans
from nemo_steerlm.core.errors import ConfigError, DataError, UsageError
from nemo_steerlm.core.escape import Escape
from nemo_steerlm.core.template import ChatTokens, Role, Template, check_typed_text, learned_intervals, text_of
from tests.core import tokenizers_of_all_kinds as kinds

DEFAULT = ChatTokens()
CONTROL = ChatTokens.from_shell(system_turn_start="x00", turn_start="x11", label_start="x12")
HOSTILE = st.lists(
    st.sampled_from(
        [
            "<extra_id_0>",
            "<extra_id_1>",
            "<extra_id_2>",
            "<\\extra_id_1>",
            "<",
            "extra_id_1>",
            "\\",
            "\\\\",
            "\x11",
            "\x12",
            "\x00",
            "␑",
            "\\␑",
            "␒",
            "<|endoftext|>",
            "<\\|endoftext|>",
            "|endoftext|>",
            "User\n",
            "Assistant\n",
            "\n",
            " ",
            "quality:4",
            "a",
            "é",
            "🙂",
        ]
    )
    | st.text(max_size=5),
    max_size=10,
).map("".join)
SPECIAL = ["<extra_id_0>", "<extra_id_1>", "<extra_id_2>", "<|endoftext|>", "\x11", "\x12", "\x00"]


@st.composite
def hostile_records(draw: st.DrawFn):
    kind = draw(st.sampled_from(["TEXT_TO_VALUE", "VALUE_TO_TEXT", None]))
    turns = [
        {"from": ("User", "Assistant")[i % 2], "value": draw(HOSTILE), "label": draw(HOSTILE | st.just("quality:4"))}
        for i in range(draw(st.integers(2, 5)))
    ]
    return {"conversations": turns, "system": draw(HOSTILE), "mask": "User", "type": kind}


@settings(max_examples=60)
@given(HOSTILE, st.lists(st.sampled_from(SPECIAL), unique=True))
def test_escape_leaves_nothing_special_and_undo_reverses_it(text, special):
    escape = Escape(special)
    written = escape.apply(text)
    assert not any(s in written for s in special)
    assert escape.undo(written) == text


@settings(max_examples=60)
@given(st.text(), st.lists(st.text(min_size=1, max_size=6), max_size=4))
def test_undo_reverses_apply_whatever_is_special(text, special):
    special = [s for s in special if s.count("\\") == 0]
    escape = Escape(special)
    assert escape.undo(escape.apply(text)) == text


@pytest.mark.parametrize("tokens", [DEFAULT, CONTROL], ids=["default", "control-characters"])
@pytest.mark.parametrize("kind", ["sentencepiece-control", "byte-level-bpe-control"])
def test_typed_control_tokens_never_become_control_ids(tokens, kind, tmp_path_factory):
    if kind == "sentencepiece-control":
        kinds.sentencepiece_plain()
        tokenizer = kinds.sentencepiece_with_control(tokens.markers, tmp_path_factory.mktemp("tokenizer"))
    else:
        tokenizer = kinds.byte_level_bpe(tokens.markers)
    ids_of_markers = {tokenizer.encode_offsets(marker)[0][-1] for marker in tokens.markers}
    assert len(ids_of_markers) == 3

    @settings(max_examples=50, database=None)
    @given(hostile_records())
    def check(record):
        spans = Template.of(tokenizer, tokens).render(Conversation.from_record(record))
        encoded = encode_spans(spans, tokenizer)
        structural = sum(span.role is Role.MARKER for span in spans)
        assert sum(i in ids_of_markers for i in encoded.ids) == structural
        assert len(encoded.ids) == len(encoded.loss_mask)
        # What is learned, as text: exactly the learned spans, no more.
        ids, offsets = tokenizer.encode_offsets(text_of(spans))
        assert ids == tokenizer.encode(text_of(spans))
        covered = {p for (a, b), on in zip(offsets, encoded.loss_mask, strict=True) if on for p in range(a, b)}
        learned = {p for a, b in learned_intervals(spans) for p in range(a, b)}
        assert covered <= learned
        markers_learned = [on for i, on in zip(ids, encoded.loss_mask, strict=True) if i in ids_of_markers and on]
        assert len(markers_learned) == sum(span.role is Role.MARKER and span.learned for span in spans)

    check()


@settings(max_examples=50)
@given(hostile_records())
def test_without_control_pieces_structure_cannot_be_typed_either(record):
    spans = Template().render(Conversation.from_record(record))
    text = text_of(spans)
    for marker in DEFAULT.markers:
        assert text.count(marker) == sum(span.text == marker for span in spans if span.role is Role.MARKER)


def test_prompts_are_prefixes_of_what_is_trained_on():
    turns = [
        {"from": "User", "value": "hi", "label": "quality:3,lang:en"},
        {"from": "Assistant", "value": "hello", "label": "quality:4,toxicity:0,lang:en"},
    ]
    for mode, prompt in (
        ("VALUE_TO_TEXT", lambda t, c: t.reply_prompt(Conversation(turns=c.turns[:1], system=c.system), "Assistant", c.turns[1].label)),
        ("TEXT_TO_VALUE", lambda t, c: t.label_prompt(c, 1)),
    ):
        conversation = Conversation.from_record({"conversations": turns, "system": "S", "mask": "User", "type": mode})
        template = Template()
        trained, asked = template.render(conversation), text_of(prompt(template, conversation))
        assert text_of(trained).startswith(asked)
        # Loss begins exactly where the prompt ends.
        assert learned_intervals(trained)[0][0] == len(asked)


def test_golden_layout():
    """The worked example of upstream's layout, VALUE_TO_TEXT, mask User."""
    turns = [
        ("User", "hi", "quality:3,lang:en"),
        ("Assistant", "hello", "quality:4,toxicity:0,lang:en"),
        ("User", "bye", "quality:2,lang:en"),
        ("Assistant", "ciao", "quality:4,toxicity:0,lang:en"),
    ]
    record = {
        "conversations": [{"from": f, "value": v, "label": label} for f, v, label in turns],
        "system": "SYS.\n\n",
        "mask": "User",
        "type": "VALUE_TO_TEXT",
    }
    assert text_of(Template().render(Conversation.from_record(record))) == (
        "<extra_id_0>System\nSYS.\n\n\n<extra_id_1>User\n<extra_id_2>quality:3,lang:en\nhi\n<extra_id_1>Assistant\n"
        "<extra_id_2>quality:4,toxicity:0,lang:en\nhello\n<extra_id_1>User\n<extra_id_2>quality:2,lang:en\nbye\n<extra_id_1>Assistant\n"
        "<extra_id_2>quality:4,toxicity:0,lang:en\nciao\n<extra_id_1>"
    )


def test_a_typed_control_token_is_found_with_its_field():
    record = {"conversations": [{"from": "User", "value": "a <extra_id_1>User"}], "system": "", "mask": "User"}
    with pytest.raises(DataError, match=r"conversations\[0\]\.value: control token '<extra_id_1>' in the text"):
        check_typed_text(Conversation.from_record(record), DEFAULT)


def test_chat_tokens_refuse_what_cannot_work():
    with pytest.raises(UsageError, match="unknown chat token"):
        ChatTokens.from_shell(turn_begin="x")
    with pytest.raises(ConfigError, match="differ"):
        ChatTokens(turn_start="<extra_id_0>")
    with pytest.raises(ConfigError, match="empty"):
        ChatTokens(end_of_turn="")
    with pytest.raises(ConfigError, match="not a valid escape"):
        ChatTokens.from_shell(turn_start="\\x1")


@pytest.mark.parametrize(
    ("written", "token"),
    [("x11", "\x11"), ("\\x11", "\x11"), ("<t>", "<t>"), ("€\\n", "€\n"), ("é\\t|", "é\t|"), ("x1", "x1"), ("\\u2603", "☃")],
)
def test_a_token_on_a_command_line_is_written_as_shells_do(written, token):
    assert ChatTokens.from_shell(turn_start=written).turn_start == token
