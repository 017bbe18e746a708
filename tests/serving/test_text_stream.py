from __future__ import annotations

import itertools

from hypothesis import example, given, settings
from hypothesis import strategies as st

from nemo_steerlm.core.template import ChatTokens, Template
from nemo_steerlm.core.tokenization import load_tokenizer
from nemo_steerlm.inference.engine import GenerationRequest, NextToken
from nemo_steerlm.serving.model import Generation
from nemo_steerlm.serving.text_stream import AnswerText, Detokenizer, StopStrings, Unescape

TEMPLATE = Template(special=("</s>", "\x11"))
PIECES = st.sampled_from([*TEMPLATE.tokens.markers, "</s>", "<", "\\", "<\\", "extra_id_1>", "␑", "\x11", "a", "\n", "é"])


def chunks(text: str, cuts: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(c % (len(text) + 1) for c in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@given(st.lists(PIECES).map("".join), st.lists(st.integers(0, 1000)))
def test_escaping_is_undone_in_any_chunks(text, cuts):
    stream = Unescape(TEMPLATE)
    got = "".join(map(stream.push, chunks(TEMPLATE.escape.apply(text), cuts))) + stream.flush()
    assert got == text


@example(text="ab<|b", cuts=[3], stops=["<|"])
@example(text="a<|<|>b", cuts=[2, 4], stops=["<|>", "x"])
@given(st.text("ab<|", max_size=30), st.lists(st.integers(0, 1000)), st.lists(st.text("ab<|", min_size=1, max_size=4), max_size=3))
def test_text_is_cut_before_the_first_stop_string_in_any_chunks(text, cuts, stops):
    stream = StopStrings(stops)
    got = ""
    for chunk in chunks(text, cuts):
        got += stream.push(chunk)
        if stream.found:
            break
    got += stream.flush()
    ends = [text.find(s) for s in stops if s in text]
    # Of two that end at different places the one that is complete first wins, so the cut may lie behind the leftmost start.
    assert stream.found == bool(ends)
    assert text.startswith(got)
    assert not any(s in got for s in stops)
    if not ends:
        assert got == text


def test_a_long_stop_string_is_found_over_many_tokens():
    stop = "and so on, " * 40
    stream = StopStrings([stop, "x"])
    assert "".join(map(stream.push, chunks("Before. " + stop + "after", [*range(0, 460, 7)]))) == "Before. "
    assert stream.found


def test_tokens_come_out_as_the_whole_text(steer_folder):
    tokenizer = load_tokenizer(steer_folder)
    text = "Once upon a time 日本 naïve 🎈 end"
    prompt, ids = tokenizer.encode_offsets("<extra_id_1>User\n")[0], tokenizer.encode_offsets("<extra_id_1>User\n" + text)[0]
    assert ids[: len(prompt)] == prompt
    stream = Detokenizer(tokenizer, prompt)
    pieces = [stream.push(token) for token in ids[len(prompt) :]]
    assert "".join(pieces) + stream.flush() == text
    assert not any("�" in piece for piece in pieces)


def test_the_end_of_the_turn_is_not_part_of_the_answer(steer_folder):
    tokenizer = load_tokenizer(steer_folder)
    prompt = tokenizer.encode_offsets("<extra_id_1>Assistant\n")[0]
    ids = tokenizer.encode_offsets("<extra_id_1>Assistant\nOne\nTwo\n")[0][len(prompt) :]
    for ended, expected in ((True, "One\nTwo"), (False, "One\nTwo\n")):
        answer = AnswerText(tokenizer, prompt, template=TEMPLATE)
        assert "".join(map(answer.push, ids)) + answer.flush(ended=ended) == expected


def test_a_control_string_that_is_no_token_ends_the_turn_as_a_token_does(steer_folder):
    tokenizer = load_tokenizer(steer_folder)
    prompt = tokenizer.encode_offsets("<extra_id_1>Assistant\n")[0]
    ids = tokenizer.encode_offsets("<extra_id_1>Assistant\nOne\nTwo\n<stop>User")[0][len(prompt) :]
    answer = AnswerText(tokenizer, prompt, template=TEMPLATE, control_stops=("<stop>",))
    pieces = []
    for token in ids:
        pieces.append(answer.push(token))
        if answer.stopped():
            break
    assert "".join(pieces) + answer.flush(ended=False) == "One\nTwo", "the last line's end belongs to the template"
    assert answer.stopped()


def test_an_end_of_turn_of_several_characters_leaves_no_rest(steer_folder):
    tokenizer = load_tokenizer(steer_folder)
    template = Template(tokens=ChatTokens(end_of_turn="</turn>\n"))
    prompt = tokenizer.encode("Assistant\n")
    for written, kept in (("One</tu\nTwo</turn>\n", "One</tu\nTwo"), ("One</turn", "One</turn"), ("One</turn>\n</turn>\n", "One</turn>\n")):
        ids = tokenizer.encode(f"Assistant\n{written}")[len(prompt) :]
        assert len(ids) > len("</turn>\n"), "it comes in pieces"
        for ended, expected in ((True, kept), (False, written)):
            answer = AnswerText(tokenizer, prompt, template=template)
            assert "".join(map(answer.push, ids)) + answer.flush(ended=ended) == expected


END, CONTROL = "</turn>\n", "<stop>"
WORDS = st.sampled_from(["One", " two", "\n", END, "</tu", "<st", CONTROL, "\\", "<", "<\\extra_id_1>", "ST", "STOP", "é", "🎈"])


@example(words=["One", "<", CONTROL, " two"], stops=[], ended=False)
@example(words=["One", "</tu", CONTROL], stops=["STOP"], ended=False)
@example(words=["One", END], stops=["n>\n"], ended=True)
@example(words=["One", "<st"], stops=["stop"], ended=True)
@example(words=["One", "\\"], stops=["\\\\"], ended=False)
@example(words=["One", "ST"], stops=["STOP"], ended=False)
@settings(max_examples=60)
@given(words=st.lists(WORDS, max_size=8), stops=st.sampled_from([[], ["STOP"], ["é"]]), ended=st.booleans())
def test_an_answer_is_its_text_up_to_what_ends_it_and_unescaped(words, stops, ended, steer_folder):
    """Token by token, as it is served, against the same rules on the whole text."""
    tokenizer, written = load_tokenizer(steer_folder), "".join(words)
    template = Template(tokens=ChatTokens(end_of_turn=END))
    prompt = tokenizer.encode("Assistant\n")
    ids = tokenizer.encode(f"Assistant\n{written}")[len(prompt) :]
    control_token = 0
    request = GenerationRequest(prompt=tuple(prompt), stop_ids=frozenset([control_token]))
    text = AnswerText(tokenizer, prompt, template=template, control_stops=(CONTROL,), stops=stops)
    generation = Generation(request, max_tokens=len(ids) + ended, text=text)
    got, finish = "", None if ids or ended else "length"
    for token in [*ids, *([control_token] if ended else [])]:
        piece = generation.advance(NextToken(token))
        got, finish = got + piece.text, piece.finish
        if finish:
            break

    turn, control, _ = written.partition(CONTROL)
    expected = template.escape.undo(turn.removesuffix(END) if ended or control else turn)
    stopped = [s for s in stops if s in expected]
    assert got == (expected.partition(stopped[0])[0] if stopped else expected)
    assert finish == ("stop" if ended or control or stopped else "length")
