"""What a chat sends and what it makes of each reply: of our servers, of upstream's, and of those that break off."""

from __future__ import annotations

import json

import pytest

from nemo_steerlm.client.chat import Chat, _completion, get_answer
from nemo_steerlm.core.attributes import preset
from nemo_steerlm.core.conversation import SYSTEM_PROMPT
from nemo_steerlm.core.errors import ConfigError, TryAgainError, UnavailableError, UsageError
from nemo_steerlm.core.model_info import ModelInfo
from tests.annotation.labelling_server import Handler
from tests.annotation.running import served

STEER = ModelInfo(kind="steer", attributes=preset("oasst"), fingerprint="f")
GOOD = "quality:4,toxicity:0,humor:0,creativity:0,violence:0,helpfulness:4,not_appropriate:0,hate_speech:0,sexual_content:0,"
GOOD += "fails_task:0,political_content:0,moral_judgement:0"


class Replying(Handler):
    """Notes each request with its key, and replies as a test says; upstream's server where ``info`` is None."""

    scores = False
    content: object = b""
    status = 200
    asked: list[dict]

    def work(self, path, answer) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append({"path": self.path, "key": self.headers["authorization"], **body})
        content = self.content(body) if callable(self.content) else self.content
        self.answer(self.status, content)

    def do_POST(self) -> None:  # noqa: N802 - the library's name
        self.work(None, None)

    def do_PUT(self) -> None:  # noqa: N802 - the library's name
        self.work(None, None)


def replying(content, **fields):
    """A server whose every reply is ``content``, or what that makes of the request."""
    return served(Replying, **{"content": staticmethod(content) if callable(content) else content, "asked": [], "info": None, **fields})


def says(answer):
    return lambda body: {"sentences": [body["sentences"][0] + answer]}


def test_upstreams_server_gets_the_tutorials_request():
    asked: list[dict] = []
    with replying(says("Because.\n<extra_id_1>User"), asked=asked) as url:
        assert get_answer("Why?", {"quality": 3}, url, max_tokens=7) == "Because."
    [body] = asked
    label = GOOD.replace("quality:4", "quality:3", 1)
    prompt = f"<extra_id_0>System\n{SYSTEM_PROMPT}\n<extra_id_1>User\nWhy?\n<extra_id_1>Assistant\n<extra_id_2>{label}\n"
    assert body.pop("sentences") == [prompt.replace("\n\n\n", "\n\n")]
    assert body == {
        "path": "/generate", "key": None, "tokens_to_generate": 7, "temperature": 1.0, "add_BOS": False, "top_k": 1, "top_p": 1.0,
        "greedy": True, "all_probs": False, "repetition_penalty": 1.0, "min_tokens_to_generate": 1,
        "end_strings": ["<|endoftext|>", "<extra_id_1>"],
    }  # fmt: skip


def test_upstreams_server_is_told_the_history_the_system_prompt_and_the_temperature(monkeypatch):
    monkeypatch.setenv("STEERLM_API_KEY", "sesame")
    asked: list[dict] = []
    with (
        replying(says(" One <\\extra_id_1>. <|endoftext|> Two"), asked=asked) as url,
        Chat(url, {"lang": "de"}, temperature=0.5, system="S") as chat,
    ):
        assert list(chat.say("A")) == ["One <extra_id_1>."], "what a person could type is no control token, and the end is left out"
        chat.set({"quality": 0})
        list(chat.say("B"))
        chat.reset()
        list(chat.say("C"))
    first, second, third = (body["sentences"][0] for body in asked)
    assert first.startswith("<extra_id_0>System\nS")
    assert first.endswith(f"<extra_id_1>User\nA\n<extra_id_1>Assistant\n<extra_id_2>{GOOD},lang:de\n")
    bad = GOOD.replace("quality:4", "quality:0", 1) + ",lang:de"
    assert f"User\nA\n<extra_id_1>Assistant\n<extra_id_2>{bad}\nOne <\\extra_id_1>.\n<extra_id_1>User\nB\n" in second
    assert second.endswith(f"<extra_id_2>{bad}\n")
    assert "User\nA\n" not in third
    assert {(body["key"], body["temperature"], body["top_k"], body["greedy"], body["tokens_to_generate"]) for body in asked} == {
        ("Bearer sesame", 0.5, 0, False, 512)
    }


@pytest.mark.parametrize(
    ("sentence", "answer"),
    [
        ("System\nUser\nhi\nquality:4\n  Yes.", "  Yes."),
        ("quality:4 quality:4\nNo.\nquality", "\nNo.\nquality"),
        ("<extra_id_1>User\nhi\n<extra_id_2>quality:4\nYes.", "Yes."),
    ],
)
def test_an_answer_is_found_where_the_tokenizer_changed_the_prompt(sentence, answer):
    assert _completion(sentence, "<extra_id_1>User\nhi\n<extra_id_2>quality:4\n").lstrip("\n") == answer.lstrip("\n")


@pytest.mark.parametrize("content", [b"<html>", {"sentence": []}, {"sentences": []}, {"sentences": [3]}, b"\xff"])
def test_what_is_no_answer_of_upstreams_server_is_said_with_its_beginning(content):
    with replying(content) as url, Chat(url, {}) as chat:
        with pytest.raises(TryAgainError, match=f"{url} gave no answer of /generate: '"):
            list(chat.say("A"))
        assert chat.messages == []


def events(*items, end="data: [DONE]\n\n"):
    return ("".join(f"data: {item if isinstance(item, str) else json.dumps(item)}\n\n" for item in items) + end).encode()


def delta(text, **more):
    return {"choices": [{"delta": {"content": text}, **more}]}


def test_our_server_is_sent_what_is_asked_for_and_its_pieces_are_passed_on():
    asked: list[dict] = []
    stream = (
        events(": comment", end="") * 0
        + b": ping\n\n"
        + events(delta("One"), {"choices": []}, delta(None), delta(" two", steerlm={"w": 1}), delta(""))
    )
    with replying(stream, asked=asked, info=STEER) as url, Chat(f"{url}/", {"quality": 1, "lang": "en"}, max_tokens=9, system="S") as chat:
        assert [piece for piece in chat.say("A") if piece] == ["One", " two"]
        assert chat.details == {"w": 1}
        assert chat.messages == [{"role": "user", "content": "A"}, {"role": "assistant", "content": "One two"}]
        chat.temperature, chat.strength, chat.system = 0.7, 2.5, None
        list(chat.say("B"))
    first, second = asked
    assert first == {
        "path": "/v1/chat/completions", "key": None, "stream": True, "max_tokens": 9, "temperature": 0.0,
        "attributes": {"quality": 1, "lang": "en"},
        "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "A"}],
    }  # fmt: skip
    assert second["messages"] == [*first["messages"][1:], {"role": "assistant", "content": "One two"}, {"role": "user", "content": "B"}]
    assert (second["temperature"], second["guidance_scale"]) == (0.7, 2.5)


@pytest.mark.parametrize(
    ("stream", "sentence"),
    [
        (events(delta("One"), end=""), "the answer broke off$"),
        (events(delta("One"), {"error": {"message": "too late", "code": 1}}), "the answer broke off: too late$"),
        (events(delta("One"), {"error": {"code": 1}}), "the answer broke off: {'code': 1}$"),
        (events(delta("One"), "{"), "not an event of a chat: '{'$"),
        (events(delta("One"), "3"), "not an event of a chat: '3'$"),
        (events(delta("One"), {"choices": [{}]}), "not an event of a chat: KeyError 'delta'$"),
    ],
)
def test_a_stream_that_breaks_off_is_no_answer(stream, sentence):
    with replying(stream, info=STEER) as url, Chat(url, {}) as chat:
        pieces = chat.say("A")
        assert next(pieces) == "One"
        with pytest.raises(TryAgainError, match=sentence):
            list(pieces)
        assert chat.messages == []


def test_the_best_of_several_is_one_reply():
    asked: list[dict] = []
    whole = {"choices": [{"message": {"content": "Best."}, "steerlm": {"chosen": 1}}]}
    with replying(whole, asked=asked, info=STEER) as url, Chat(url, {}, best_of=3) as chat:
        assert list(chat.say("A")) == ["Best."]
        assert chat.details == {"chosen": 1}
    assert (asked[0]["best_of"], asked[0]["path"], "stream" in asked[0]) == (3, "/v1/chat/completions", False)
    with replying({"choices": [{"message": {"content": "Best."}}]}, info=STEER) as url, Chat(url, {}, best_of=3) as chat:
        list(chat.say("A"))
        assert chat.details == {}
    for content in ({"choices": []}, b"<html>", {"choices": [3]}):
        with (
            replying(content, info=STEER) as url,
            Chat(url, {}, best_of=3) as chat,
            pytest.raises(TryAgainError, match="gave no answer of a chat: '"),
        ):
            list(chat.say("A"))


@pytest.mark.parametrize("chat_of", [{"info": STEER}, {"info": None}, {"info": STEER, "best_of": 2}], ids=["stream", "upstream", "best"])
@pytest.mark.parametrize(
    ("status", "error"), [(400, UsageError), (422, UsageError), (500, TryAgainError), (503, TryAgainError), (502, UnavailableError)]
)
def test_a_refusal_is_said_as_the_server_says_it(chat_of, status, error):
    with (
        replying({"error": {"message": "because"}}, status=status, info=chat_of["info"]) as url,
        Chat(url, {}, best_of=chat_of.get("best_of", 1)) as chat,
        pytest.raises(error, match="because"),
    ):
        list(chat.say("A"))


@pytest.mark.parametrize("best_of", [1, 2])
@pytest.mark.parametrize("info", [STEER, None], ids=["ours", "upstreams"])
def test_a_server_that_has_gone_is_named(info, best_of):
    with replying(b"", info=info) as url:
        chat = Chat(url, {}, best_of=best_of)
    with chat, pytest.raises(UnavailableError, match=f"^{url} cannot be reached: "):
        list(chat.say("A"))


def test_a_server_that_nobody_reaches_is_given_up_after_the_patience():
    with pytest.raises(UnavailableError, match=r"http://127\.0\.0\.1:9"):
        get_answer("A", {}, "http://127.0.0.1:9", patience=0.2)


def test_a_model_that_only_reads_is_refused_and_so_is_what_a_model_does_not_have():
    value = ModelInfo(kind="value", attributes=preset("oasst"), fingerprint="f")
    with replying(b"", info=value) as url, pytest.raises(ConfigError, match="has a value model, which reads attributes"):
        Chat(url, {})
    with replying(b"", info=STEER) as url:
        with pytest.raises(UsageError, match=r"quality is 9; this model has quality 0\.\.4, toxicity 0\.\.4"):
            Chat(url, {"quality": 9})
        with Chat(url, {"quality": 1}) as chat:
            chat.set({"humor": 2})
            with pytest.raises(UsageError, match="qualty"):
                chat.set({"qualty": 1})
            assert chat.attributes.to_mapping() == {"quality": 1, "humor": 2}
