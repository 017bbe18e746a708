"""Answers and readings come back in order from whichever server is there; what is refused is said once."""

from __future__ import annotations

import pytest

from nemo_steerlm.client.asking import Ask, Sampling, answers, readings
from nemo_steerlm.core.conversation import Conversation, Turn
from nemo_steerlm.core.errors import DataError
from nemo_steerlm.core.labels import Label

SAMPLING = Sampling(max_tokens=8, temperature=1.0, top_k=50)
NOBODY = "http://127.0.0.1:9"


def asked(text):
    return Conversation(turns=(Turn(speaker="User", text=text),), system="S")


def asks(**attributes):
    return [Ask(conversation=asked(f"Tell me of {number}."), label=Label(values=attributes), seed=number) for number in range(5)]


def test_a_server_that_is_not_there_changes_no_answer(steer_server):
    seen = []
    alone = answers([steer_server.url], asks(quality=4), SAMPLING, seen.append)
    assert seen == [1, 2, 3, 4, 5]
    assert len(set(alone)) > 1
    assert answers([NOBODY, steer_server.url], asks(quality=4), SAMPLING, seen.append) == alone


def test_readings_are_those_of_the_last_turn_in_order(value_server):
    texts = ("One.", "Two, and a good deal more than that.", "Three!")
    conversations = [Conversation(turns=(*asked("c#").turns, Turn(speaker="Assistant", text=text)), system="S") for text in texts]
    together = readings([value_server.url], conversations, lambda _: None)
    apart = [readings([value_server.url], [conversation], lambda _: None)[0] for conversation in conversations]
    assert together == [pytest.approx(reading, abs=1e-4) for reading in apart]
    assert together[0] != together[1]


def test_a_refused_request_is_the_callers_fault(steer_server):
    with pytest.raises(DataError, match=r"/v1/chat/completions failed: HTTP 4\d\d: .*qualty"):
        answers([steer_server.url], asks(qualty=4), SAMPLING, lambda _: None)
