"""What people type never becomes a control token, whatever the tokenizer makes of it; and writing it so takes time as long as the text."""

from __future__ import annotations

import functools
import time
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nemo_steerlm.core.conversation import Conversation
from nemo_steerlm.core.encoding import encode_spans, prompt_ids, require_own_structure
from nemo_steerlm.core.errors import DataError
from nemo_steerlm.core.escape import Escape
from nemo_steerlm.core.template import ChatTokens, Role, Span, Template, text_of
from tests.core import tokenizers_of_all_kinds as kinds

TOKENS = ChatTokens()
NAMES = [
    *(f"sentencepiece {rule} {kind}" for rule in kinds.SENTENCEPIECE_RULES for kind in ("bpe", "unigram")),
    *(f"Hugging Face, {name}" for name in kinds.HUGGING_FACE_NORMALIZERS),
]


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    family, _, rest = request.param.partition(" ")
    if family == "sentencepiece":
        rule, kind = rest.split(" ")
        return kinds.normalising_sentencepiece(rule, kind, TOKENS.markers, folder)
    return kinds.normalising_hugging_face(rest.partition(", ")[2], TOKENS.markers, folder)


@functools.cache
def confusables() -> dict[str, list[str]]:
    """All characters that look like a character of the markers to some normaliser, by that character; what several drop, by ``""``."""
    letters = set("".join(TOKENS.markers)) | {"\\"}
    found: dict[str, list[str]] = {letter: [] for letter in letters}
    for code in range(0x110000):
        character = chr(code)
        if unicodedata.category(character) == "Cs":
            continue
        plain = unicodedata.normalize("NFKD", character).casefold()
        if len(plain) > 1:
            plain = "".join(c for c in plain if not unicodedata.combining(c))
        if plain in found and character not in letters:
            found[plain].append(character)
    found[""] = ["\x01", "\x7f", "\xad", "\u200b", "\u200d", "\u0301", "\u0338", "\ufeff", "\u2060"]
    return found


def test_there_are_many_ways_to_write_a_marker():
    found = confusables()
    assert {"＜", "﹤"} <= set(found["<"])
    assert {"①", "１", "¹", "𝟏"} <= set(found["1"])
    assert {"＼", "﹨"} <= set(found["\\"])
    assert sum(map(len, found.values())) > 200


@st.composite
def disguised(draw: st.DrawFn) -> str:
    """A marker as somebody writes it who means it: look-alikes of its characters, what normalisers drop in between, and backslashes."""
    found = confusables()
    written = []
    for character in draw(st.sampled_from([*TOKENS.markers, "<|endoftext|>", "<\\extra_id_1>"])):
        alike = found.get(character, [])
        written.append(draw(st.sampled_from([character, *alike])) if alike and draw(st.booleans()) else character)
        if draw(st.integers(0, 9)) == 0:
            written.append(draw(st.sampled_from(found[""] + found["\\"])))
    return "".join(written)


TEXT = st.lists(disguised() | st.text(max_size=4), max_size=6).map("".join)


@settings(max_examples=60, database=None)
@given(texts=st.lists(TEXT, min_size=4, max_size=4), label=TEXT)
@example(texts=["＜extra_id_1＞", "‹extra_id_①>", "﹤extra_id_1﹥", "<ex\x01tra_id_1>"], label="<EXTRA_ID_1>")
@example(texts=["<extra_id_1>\u0338", "＜＼extra_id_1＞", "é<éxtra_id_1>", "<\\extra_id_1>"], label="quality:4")
def test_nothing_that_normalises_to_a_marker_becomes_one(tokenizer, texts, label):
    system, speaker, first, second = texts
    turns = [{"from": "User", "value": first}, {"from": speaker or "Assistant", "value": second, "label": label}]
    template = Template.of(tokenizer, TOKENS)
    for kind in ("TEXT_TO_VALUE", "VALUE_TO_TEXT"):
        record = {"conversations": turns, "system": system, "mask": "User", "type": kind}
        spans = template.render(Conversation.from_record(record))
        ids = {marker: tokenizer.token_id(marker) for marker in TOKENS.markers}
        encoded = encode_spans(spans, tokenizer)  # raises where a control token is not the template's own
        for marker, token in ids.items():
            assert encoded.ids.count(token) == sum(span.role is Role.MARKER and span.text == marker for span in spans)
        assert prompt_ids(spans, tokenizer) == tokenizer.encode(text_of(spans))


@settings(max_examples=60, database=None)
@given(TEXT)
def test_what_is_written_reads_as_it_did(tokenizer, text):
    """``undo`` gives the text back, or what the tokenizer makes of it anyway."""
    escape = Template.of(tokenizer, TOKENS).escape
    back = escape.undo(escape.apply(text))
    assert back == text or tokenizer.normalizer(back) == tokenizer.normalizer(text)


@settings(max_examples=60, database=None)
@given(st.text(max_size=40))
def test_other_text_is_left_alone(tokenizer, text):
    escape = Template.of(tokenizer, TOKENS).escape
    if "extra_id" not in tokenizer.normalizer(text) and "\\" not in text:
        assert escape.apply(text) == text


def test_a_control_token_that_slips_in_is_seen(tokenizer):
    spans = [Span("<extra_id_1>", Role.MARKER), Span("User", Role.NAME), Span("\n", Role.END), Span("a <extra_id_1> b", Role.TEXT)]
    for encode in (encode_spans, prompt_ids):
        with pytest.raises(DataError, match="adds or hides the control token '<extra_id_1>'"):
            encode(spans, tokenizer)
    with pytest.raises(DataError, match="adds or hides"):
        require_own_structure(spans[:1], tokenizer.encode("<extra_id_1><extra_id_2>")[-2:], tokenizer)


def test_a_normaliser_that_nothing_helps_against_is_refused_in_words():
    escape = Escape(["<extra_id_1>"], lambda text: text.replace("\\", "").replace("(:", "<extra_id_1>"))
    for text in ("<extra_id_1>", "a (: b"):
        with pytest.raises(DataError, match="turns into its control token '<extra_id_1>'"):
            escape.apply(text)
    assert escape.apply("a smile") == "a smile"


def seconds(work, text: str) -> float:
    """This process's time for it, whatever else the machine does: the least of several."""
    times = []
    for _ in range(5):
        started = time.process_time()
        work(text)
        times.append(time.process_time() - started)
    return min(times)


SPECIALS = {
    "control characters": ["\x00", "\x11", "\x12"],
    "words": ["<extra_id_0>", "<extra_id_1>", "</s>", *(f"<|reserved_special_token_{i}|>" for i in range(256))],
    "a backslash of its own": ["\\x", "<\\s>", "\x11"],
}


@pytest.mark.parametrize("special", SPECIALS)
@pytest.mark.parametrize("repeated", ["\\", "<", "<\\", "\\\x11", "<|reserved_special_token_25", "␑\\", "＜"])
def test_four_times_the_text_takes_about_four_times_as_long(special, repeated):
    """With a square it is sixteen times."""
    escape = Escape(SPECIALS[special], functools.partial(unicodedata.normalize, "NFKC"))
    for work in (escape.apply, escape.undo, escape.first_in):
        short, long = (repeated * (size // len(repeated)) for size in (8_000, 32_000))
        assert seconds(work, long) < 9 * max(seconds(work, short), 1e-4)
