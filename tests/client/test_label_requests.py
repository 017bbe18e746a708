"""What a labelling server is asked, and which of its answers are taken: each protocol over a real connection."""

from __future__ import annotations

import asyncio
import copy

import httpx
import msgspec
import pytest

from nemo_steerlm.client.announcement import Announcement, read_announcement
from nemo_steerlm.client.labelling import LabelFormat, Labelling, TurnLabel, advance, taught_turns
from nemo_steerlm.client.retry import Fault, RequestFailed, error_message, send
from nemo_steerlm.client.servers import Server
from nemo_steerlm.core.attributes import Attribute, AttributeSchema, preset
from nemo_steerlm.core.conversation import Conversation, Turn
from nemo_steerlm.core.errors import ConfigError
from nemo_steerlm.core.template import Template
from tests.annotation.labelling_server import Handler, label_of, model_info
from tests.annotation.running import QUICK, served
from tests.client.test_chat_requests import STEER, replying

SCHEMA = AttributeSchema(attributes=(Attribute(name="quality"), Attribute(name="humor")), languages=("en", "de"))
PLAIN = AttributeSchema(attributes=SCHEMA.attributes)


def conversation(*texts, label=None):
    turns = (Turn(speaker=("User", "Assistant")[i % 2], text=text, label=label) for i, text in enumerate(texts))
    return Conversation(turns=tuple(turns), system="S")


def form(schema=SCHEMA, **fields):
    return LabelFormat(schema=schema, template=Template(), **fields)


def turn(index=1, label="quality:3,humor:1,lang:en", **changes):
    """A turn as a server that scores gives it, with a probability of each value."""
    made = {
        "index": index,
        "label": label,
        "attributes": {
            "quality": {"value": 3, "probabilities": {"2": 0.3, "3": 0.7}},
            "humor": {"value": 1, "probabilities": {"1": 0.1234567}},
        },
        "lang": {"value": "en", "probabilities": {"en": 0.9, "de": 0.1}},
    }
    return {key: value for key, value in {**made, **changes}.items() if value is not ...}


def results(*turns, model="f"):
    return {"model": model, "results": [{"turns": [each]} for each in turns]}


def advanced(url, work, announcement):
    async def run():
        server = Server(url)
        server.announcement = announcement
        async with httpx.AsyncClient() as client:
            await advance(work, server, client, QUICK)

    asyncio.run(run())


SCORES = Announcement(info=STEER, scores=True)


def scored(content, schema=SCHEMA, count=1, **fields):
    """The labels that are taken of a reply."""
    work = [Labelling(conversation("Q", f"A{i}", label="quality:0,humor:0"), form(schema, **fields)) for i in range(count)]
    asked = []
    with replying(content, asked=asked) as url:
        advanced(url, work, SCORES)
    return [item.labels for item in work], asked


def test_scores_are_asked_for_without_the_labels_that_are_to_be_read():
    labels, [body] = scored(results(turn(), turn(label="quality:3,humor:1,lang:en")), count=2, fingerprint="f")
    assert body.pop("path") == "/v1/attributes"
    assert body["turns"] == "unmasked"
    turns = [[(each["value"], each.get("label")) for each in record["conversations"]] for record in body["conversations"]]
    assert turns == [[("Q", "quality:0,humor:0"), (f"A{i}", None)] for i in range(2)]
    assert (
        labels
        == [{1: TurnLabel(index=1, label="quality:3,humor:1,lang:en", confidence={"quality": 0.7, "humor": 0.123457, "lang": 0.9})}] * 2
    )


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_a_probability_may_be_none_or_all(p):
    sure = turn(attributes={name: {"value": value, "probabilities": {str(value): p}} for name, value in (("quality", 3), ("humor", 1))})
    [labels], _ = scored(results(sure))
    assert labels[1].confidence == {"quality": p, "humor": p, "lang": 0.9}


def without(probabilities):
    attributes = copy.deepcopy(turn()["attributes"])
    attributes["humor"]["probabilities"] = probabilities
    return turn(attributes=attributes)


@pytest.mark.parametrize("probabilities", [{}, {"2": 0.9}, {"1": 1.5}, {"1": -0.5}])
def test_a_label_that_lacks_a_probability_has_none(probabilities):
    [labels], _ = scored(results(without(probabilities)))
    assert labels[1] == TurnLabel(index=1, label="quality:3,humor:1,lang:en")


@pytest.mark.parametrize("given", [turn(), turn(lang=..., label="quality:3,humor:1")])
def test_a_language_that_nobody_wants_is_left_out(given):
    [labels], _ = scored(results(given), PLAIN)
    assert labels[1] == TurnLabel(index=1, label="quality:3,humor:1", confidence={"quality": 0.7, "humor": 0.123457})


OTHER = turn()["attributes"] | {"humor": {"value": 2, "probabilities": {}}}
TOO_HIGH = turn()["attributes"] | {"humor": {"value": 5, "probabilities": {}}}
UNKNOWN = turn()["attributes"] | {"wit": {"value": 1, "probabilities": {}}}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<html>", "not an answer of /v1/attributes: "),
        ({"results": 3}, "not an answer of /v1/attributes: "),
        (results(turn(attributes=OTHER)), "label 'quality:3,humor:1,lang:en' and values do not agree"),
        (results(turn(lang={"value": "de"})), "do not agree"),
        (results(turn(lang=...)), "do not agree"),
        (results(turn(lang=..., label="quality:3,humor:1")), "do not agree"),
        (results(turn(attributes={"quality": turn()["attributes"]["quality"]}, label="quality:3,lang:en")), "do not agree"),
        (results(turn(attributes=TOO_HIGH)), "wrong value: humor: label out of range"),
        (results(turn(attributes=UNKNOWN)), "wrong value: unknown attribute 'wit'"),
        (results(turn(lang={"value": "xx"})), "wrong value: lang: unknown language 'xx'"),
        (results(), "0 results for 1 conversations"),
        (results(turn(), turn()), "2 results for 1 conversations"),
        (results(turn(index=0)), r"labels of turns \[0\] instead of \[1\]"),
        ({"results": [{"turns": []}]}, r"labels of turns \[\] instead of \[1\]"),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_costs_an_attempt(content, reason):
    with pytest.raises(RequestFailed, match=reason) as failed:
        scored(content)
    assert failed.value.fault is Fault.ATTEMPT


def test_another_models_answer_is_never_taken():
    with pytest.raises(RequestFailed, match="answered by model 'f', not 'g'") as failed:
        scored(results(turn()), fingerprint="g")
    assert failed.value.fault is Fault.SERVER


def test_values_are_asked_for_one_by_one_where_a_server_only_generates():
    """One request is one value of every conversation; done ones are left out."""
    texts = [("Q", "A"), ("Q", "B", "Q", "C")]
    work = [Labelling(conversation(*each), form(preset("oasst"))) for each in texts]
    sizes = []

    class Upstream(Handler):
        def reply(self, body, answer):
            sizes.append(len(body["sentences"]))
            return 200, answer(body)

    with served(Upstream, info=None, scores=False) as url:
        while not all(item.done for item in work):
            advanced(url, work, None)
    assert sizes == [2] * 13 + [1] * 13
    for item, each in zip(work, texts, strict=True):
        assert {i: read.label for i, read in item.labels.items()} == {i: label_of(each[i], preset("oasst")) for i in range(1, len(each), 2)}
        assert all(read.confidence is None for read in item.labels.values())


def test_upstreams_request_is_its_scripts():
    asked = []
    with replying({"sentences": ["quality:3"]}, asked=asked) as url:
        advanced(url, [Labelling(conversation("Q", "A"), form())], Announcement(info=STEER))
    [body] = asked
    assert body.pop("sentences")[0].endswith("<extra_id_2>quality:")
    assert body == {
        "path": "/generate", "key": None, "tokens_to_generate": 1, "temperature": 0.1, "add_BOS": False, "top_k": 1, "top_p": 1.0,
        "greedy": True, "all_probs": False, "repetition_penalty": 1.0, "min_tokens_to_generate": 1,
        "end_strings": ["<extra_id_1>", "<|endoftext|>"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<html>", "not an answer of /generate: b'<html>'"),
        ({"sentences": [3]}, "not an answer of /generate"),
        ({"sentences": []}, "0 sentences for 1 prompts"),
        ({"sentences": ["hello"]}, "answer has no quality: 'hello'"),
        ({"sentences": ["quality:9"]}, "wrong value '9' of quality"),
    ],
)
def test_what_upstreams_server_cannot_mean_costs_an_attempt(content, reason):
    with replying(content) as url, pytest.raises(RequestFailed, match=reason) as failed:
        advanced(url, [Labelling(conversation("Q", "A"), form())], None)
    assert failed.value.fault is Fault.ATTEMPT


def test_values_before_a_wrong_one_are_kept():
    work = [Labelling(conversation("Q", answer), form()) for answer in ("A", "B")]
    with replying({"sentences": ["quality:4", "quality:x"]}) as url, pytest.raises(RequestFailed):
        advanced(url, work, None)
    assert [item.prompt().rpartition("<extra_id_2>")[2] for item in work] == ["quality:4,humor:", "quality:"]


def test_probabilities_are_not_to_be_had_of_a_server_that_only_generates():
    with pytest.raises(RequestFailed, match="has no /v1/attributes, so it gives no probabilities") as failed:
        advanced("http://127.0.0.1:9", [Labelling(conversation("Q", "A"), form(confidence=True))], Announcement(info=STEER))
    assert failed.value.fault is Fault.SERVER


@pytest.mark.parametrize(
    ("labelled", "turns"), [(msgspec.UNSET, None), ((), "unmasked"), (("Assistant",), "unmasked"), (("Assistant", "User"), "all")]
)
def test_the_turns_to_label_are_those_that_had_labels_when_the_model_was_trained(labelled, turns):
    assert taught_turns(msgspec.structs.replace(model_info(), labelled=labelled)) == turns


def announced(models=None, status=200, **fields):
    class Models(Handler):
        def do_GET(self):  # noqa: N802 - the library's name
            self.answer(status, models if isinstance(models, bytes) else {"data": models})

    async def run(url):
        async with httpx.AsyncClient() as client:
            return await read_announcement(url, client, QUICK, **fields)

    with served(Models) as url:
        return asyncio.run(run(url))


def model(info, **more):
    return {"id": "m", "metadata": {"steerlm": info.to_dict(), **more.pop("metadata", {})}, **more}


def test_of_several_models_the_one_of_the_wanted_kind_is_announced():
    both = [{"id": "other"}, model(STEER, reads=True), model(model_info(), metadata={"scores": True})]
    assert announced(both) == Announcement(info=model_info(), scores=True)
    assert announced(both, kind="steer") == Announcement(info=STEER, reads=True)
    assert announced([model(STEER, scores=True)]) == Announcement(info=STEER, scores=True)
    assert announced([{"id": "other"}]) == Announcement()
    assert (Announcement().fingerprint, Announcement().name) == ("", "a model that it does not announce")
    assert (Announcement(info=STEER).fingerprint, Announcement(info=STEER).name) == ("f", "model f")


@pytest.mark.parametrize(
    ("models", "reason"),
    [
        (b"<html>", "GET /v1/models: not a list of models"),
        ([], "not a list of models"),
        ([3], "not a list of models"),
        ([{"metadata": {"steerlm": {"kind": "value"}}}], "/v1/models: Object missing required field `attributes`"),
    ],
)
def test_what_is_no_announcement_is_the_servers_fault(models, reason):
    with pytest.raises(RequestFailed, match=reason) as failed:
        announced(models)
    assert failed.value.fault is Fault.SERVER


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_wants_another_key_is_named_with_where_to_put_it(status):
    with pytest.raises(ConfigError, match=rf"refuses this client \(HTTP {status}.*put its key in STEERLM_API_KEY"):
        announced([], status)


@pytest.mark.parametrize("status", [404, 405])
def test_a_server_without_models_has_generate_or_is_none(status):
    assert announced([], status) == Announcement()

    class Proxy(Handler):
        def do_GET(self):  # noqa: N802 - the library's name
            self.answer(status, {})

        def do_OPTIONS(self):  # noqa: N802 - the library's name
            self.answer(404, {})

    async def run(url):
        async with httpx.AsyncClient() as client:
            await read_announcement(url, client, QUICK)

    with served(Proxy) as url, pytest.raises(RequestFailed, match=f"HTTP {status}"):
        asyncio.run(run(url))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"error": {"message": "m"}}, "m"),
        ({"message": "m"}, "m"),
        ({"error": "e"}, "e"),
        ({"error": "e", "message": "m"}, "m"),
        (b" plain ", "plain"),
        (b"", "Teapot"),
        (b"x" * 300, "x" * 200),
        ({"message": "y" * 300}, "y" * 200),
        ([1], r"\[1\]"),
    ],
)
def test_a_refusal_says_what_the_server_says(content, message):
    class Refusing(Handler):
        responses = {**Handler.responses, 418: ("Teapot", "")}

        def do_GET(self):  # noqa: N802 - the library's name
            self.answer(418, content, {"Retry-After": "7"})

    async def run(url):
        async with httpx.AsyncClient() as client:
            await send(client, client.build_request("GET", url), 60)

    with served(Refusing) as url, pytest.raises(RequestFailed, match=f"^HTTP 418: {message}$") as failed:
        asyncio.run(run(url))
    assert (failed.value.fault, failed.value.retry_after) == (Fault.REQUEST, 7.0)


def test_a_message_is_read_of_any_response():
    assert error_message(httpx.Response(500, json={"error": {"message": "m"}})) == "m"
