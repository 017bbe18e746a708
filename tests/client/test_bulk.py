"""Answers and readings come back in order from whichever server is there; what is refused is said once."""

from __future__ import annotations

import json

import pytest

from nemo_steerlm.client.bulk import Answer, AnswerRequest, GenerationOptions, generate_answers, read_turns
from nemo_steerlm.core.conversation import Conversation, Turn
from nemo_steerlm.core.errors import DataError
from nemo_steerlm.core.labels import Label
from tests.annotation.labelling_server import Handler
from tests.annotation.running import served

OPTIONS = GenerationOptions(max_tokens=8, temperature=1.0, top_k=50)
NOBODY = "http://127.0.0.1:9"


def asked(text):
    return Conversation(turns=(Turn(speaker="User", text=text),), system="S")


def asks(**attributes):
    return [AnswerRequest(conversation=asked(f"Tell me of {number}."), label=Label(values=attributes), seed=number) for number in range(5)]


def test_a_server_that_is_not_there_changes_no_answer(steer_server):
    seen = []
    alone = generate_answers([steer_server.url], asks(quality=4), OPTIONS, seen.append)
    assert seen == [1, 2, 3, 4, 5]
    assert len(set(alone)) > 1
    assert generate_answers([NOBODY, steer_server.url], asks(quality=4), OPTIONS, seen.append) == alone


def test_readings_are_those_of_the_last_turn_in_order(value_server):
    texts = ("One.", "Two, and a good deal more than that.", "Three!")
    conversations = [Conversation(turns=(*asked("c#").turns, Turn(speaker="Assistant", text=text)), system="S") for text in texts]
    together = read_turns([value_server.url], conversations, lambda _: None)
    apart = [read_turns([value_server.url], [conversation], lambda _: None)[0] for conversation in conversations]
    assert [t.expected for t in together] == [pytest.approx(reading.expected, abs=1e-4) for reading in apart]
    assert all(sum(p) == pytest.approx(1) for t in together for p in t.probabilities.values())
    assert together[0] != together[1]


def test_a_refused_request_is_the_callers_fault(steer_server):
    with pytest.raises(DataError, match=r"/v1/chat/completions failed: HTTP 4\d\d: .*qualty"):
        generate_answers([steer_server.url], asks(qualty=4), OPTIONS, lambda _: None)


def test_a_killed_job_asks_only_for_what_it_has_not_got(tmp_path):
    """The journal of a job that was cut short, in the middle of a line: what is whole in it is not asked again."""
    seeds = []

    class Chats(Handler):
        def do_POST(self):  # noqa: N802 - the library's name
            seeds.append(json.loads(self.rfile.read(int(self.headers["content-length"])))["seed"])
            self.answer(200, {"choices": [{"message": {"content": f"seen {seeds[-1]}"}, "finish_reason": "length"}]})

    journal = tmp_path / "answers.jsonl"
    with served(Chats, info=None) as url:
        first = generate_answers([url], asks(quality=4)[:3], OPTIONS, lambda _: None, journal)
        journal.write_bytes(journal.read_bytes()[:-5])
        assert sorted(seeds) == [0, 1, 2]
        seeds.clear()
        again = generate_answers([url], asks(quality=4), OPTIONS, lambda _: None, journal)
        assert len(seeds) == 3
        assert {3, 4} < set(seeds)
        assert again == [*first, Answer(text="seen 3", finish="length"), Answer(text="seen 4", finish="length")]
        seeds.clear()
        assert generate_answers([url], asks(quality=4), OPTIONS, lambda _: None, journal) == again
        assert not seeds
        # Another request is another answer.
        generate_answers([url], asks(quality=3)[:1], OPTIONS, lambda _: None, journal)
        assert seeds == [0]


def test_earlier_answers_are_the_assistants_and_every_option_is_sent():
    bodies = []

    class Chats(Handler):
        def do_POST(self):  # noqa: N802 - the library's name
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            bodies.append((self.path, body))
            self.answer(200, {"choices": [{"message": {"content": f"seen {body['seed']}"}}]})

    turns = tuple(Turn(speaker=who, text=text) for who, text in (("User", "Why?"), ("Assistant", "Because."), ("User", "Really?")))
    conversation = Conversation(turns=turns, system="Be kind.", mask="User")
    request = AnswerRequest(conversation=conversation, label=Label(values={"quality": 4}, language="en"), seed=7)
    with served(Chats, info=None) as url:
        texts = generate_answers([url], [request], GenerationOptions(max_tokens=9, temperature=0.5, top_k=3), lambda _: None)
    assert texts == [Answer(text="seen 7")]
    assert bodies == [
        (
            "/v1/chat/completions",
            {
                "messages": [
                    {"role": "system", "content": "Be kind."},
                    {"role": "user", "content": "Why?"},
                    {"role": "assistant", "content": "Because."},
                    {"role": "user", "content": "Really?"},
                ],
                "attributes": {"quality": 4, "lang": "en"},
                "seed": 7,
                "max_tokens": 9,
                "temperature": 0.5,
                "top_k": 3,
            },
        )
    ]
