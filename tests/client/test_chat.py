"""Talking to a model: the best of several answers, strength, and what is said of an answer."""

from __future__ import annotations

import pytest

from nemo_steerlm.cli.chat import _command, _details_line
from nemo_steerlm.client.chat import Chat
from nemo_steerlm.core.errors import UsageError
from tests.serving.in_process import listening, local

ASKED = {"quality": 1, "toxicity": 2, "lang": "en"}


@pytest.fixture(scope="module")
def url(steer_folder, value_folder):
    with listening(local(steer_folder), reader=local(value_folder)) as url:
        yield url


def test_a_streamed_answer_says_how_it_reads(url):
    with Chat(url, ASKED, max_tokens=8) as chat:
        pieces = list(chat.say("Once upon a time"))
        assert len(pieces) > 2
        assert set(chat.details["read"]["attributes"]) == {"quality", "toxicity", "humor"}
        assert _details_line(chat.details).startswith("[reads quality ")
        assert chat.messages[-1]["content"] == "".join(pieces)


def test_the_best_of_several_comes_whole(url):
    with Chat(url, ASKED, max_tokens=8, temperature=1.0, best_of=3) as chat:
        (answer,) = chat.say("Once upon a time")
        assert answer == chat.details["candidates"][chat.details["chosen"]]["text"]
        assert f"answer {chat.details['chosen'] + 1} of 3" in _details_line(chat.details)
        chat.best_of = 17
        with pytest.raises(UsageError, match="best_of"):
            list(chat.say("And then?"))
        assert len(chat.messages) == 2, "a refused question is not said"


def test_strength_is_asked_for(url):
    with Chat(url, ASKED, max_tokens=8) as plain, Chat(url, ASKED, max_tokens=8, strength=8.0) as strong:
        assert "".join(plain.say("Once upon a time")) != "".join(strong.say("Once upon a time"))
        strong.strength = 11
        with pytest.raises(UsageError, match="guidance_scale"):
            list(strong.say("And then?"))


def test_both_are_set_while_talking(url, capsys):
    with Chat(url, ASKED) as chat:
        assert _command(chat, "/strength 2.5")
        assert _command(chat, "/best 4")
        assert (chat.strength, chat.best_of) == (2.5, 4)
        assert "; strength 2.5; best of 4]" in capsys.readouterr().out
        assert _command(chat, "/best many")
        assert chat.best_of == 4
        assert "/best wants a number" in capsys.readouterr().err


def test_what_was_never_taught_is_said():
    told = {"support": 0, "warning": "this combination of attributes was never taught", "nearest_taught": {"quality": 4, "humor": 0}}
    assert _details_line(told) == "[this combination of attributes was never taught; the nearest that was: quality=4 humor=0]"
    assert _details_line({"support": 3}) == ""
