"""More control at inference: reading back, the best of several, strength, no label, and what was never taught. In this process."""

from __future__ import annotations

import json
import math
import shutil

import msgspec
import pytest

from nemo_steerlm.core.errors import DataError
from nemo_steerlm.core.label_support import LabelSupport
from nemo_steerlm.core.labels import Label
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.serving.prompts import Prompts
from nemo_steerlm.serving.schemas import ChatBody, ChatMessage
from tests.serving.in_process import local, served

QUESTION = [{"role": "user", "content": "Once upon a time"}]
ASKED = {"quality": 1, "toxicity": 2, "humor": 0, "lang": "en"}
TAUGHT = ["quality:1,toxicity:2,humor:0,lang:en"] * 3 + ["quality:4,toxicity:0,humor:1"]


def taught_info(folder, **counted):
    info = ModelInfo.load(folder)
    return msgspec.structs.replace(info, support=LabelSupport.count(info.attributes, TAUGHT, **counted))


@pytest.fixture(scope="module")
def taught_folder(steer_folder, tmp_path_factory):
    """The steer model with what it was taught written beside it."""
    folder = tmp_path_factory.mktemp("taught") / "hf"
    shutil.copytree(steer_folder, folder)
    taught_info(folder).save(folder)
    return folder


@pytest.fixture(scope="module")
def server(taught_folder, value_folder):
    with served(local(taught_folder), reader=local(value_folder), defaults=Label(language="en")) as client:
        yield client


@pytest.fixture(scope="module")
def alone(steer_folder):
    """A steer model that nothing reads for, and that nobody counted labels of."""
    with served(local(steer_folder)) as client:
        yield client


def chat(server, status=200, **body):
    response = server.post("/v1/chat/completions", json={"messages": QUESTION, "max_tokens": 12, "seed": 3, **body})
    assert response.status_code == status, response.text
    return response.json()


def events(server, **body):
    response = server.post("/v1/chat/completions", json={"messages": QUESTION, "max_tokens": 12, "seed": 3, "stream": True, **body})
    assert response.status_code == 200, response.text
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]


def system(server):
    return server.get("/v1/models").json()["data"][0]["metadata"]["steerlm"]["system"]


def read(server, text, **body):
    turns = [{"from": "User", "value": QUESTION[0]["content"]}, {"from": "Assistant", "value": text}]
    record = {"conversations": turns, "system": system(server), "mask": "User", "type": "TEXT_TO_VALUE"}
    response = server.post("/v1/attributes", json={"conversations": [record], **body})
    assert response.status_code == 200, response.text
    return response.json()["results"][0]["turns"][0]


def same(mine, theirs):
    assert mine["label"] == theirs["label"]
    for name, found in theirs["attributes"].items():
        assert mine["attributes"][name]["expected"] == pytest.approx(found["expected"], abs=1e-3)


def test_an_answer_says_how_it_reads(server):
    choice = chat(server, attributes=ASKED)["choices"][0]
    same(choice["steerlm"]["read"], read(server, choice["message"]["content"]))
    assert "steerlm" not in chat(server)["choices"][0]
    assert "read" not in chat(server, attributes=ASKED, read=False)["choices"][0]["steerlm"]


def test_a_streamed_answer_is_read_where_it_is_wanted(server):
    choice = chat(server, attributes=ASKED)["choices"][0]
    *_, last = events(server, attributes=ASKED, read=True)
    same(last["choices"][0]["steerlm"]["read"], choice["steerlm"]["read"])
    assert not any("steerlm" in choice for event in events(server, attributes=ASKED) for choice in event["choices"])


def test_an_answer_that_cannot_be_read_is_given_all_the_same(server, monkeypatch):
    async def broken(*_):
        raise DataError("too long")

    monkeypatch.setattr("nemo_steerlm.serving.attributes.Scoring.requests", broken)
    told = chat(server, attributes=ASKED)["choices"][0]
    assert told["message"]["content"]
    assert (told["steerlm"]["read"], told["steerlm"]["not_read"]) == (None, "too long")
    assert "too long" in json.dumps(chat(server, 400, attributes=ASKED, best_of=2))


def test_how_often_a_combination_was_taught_is_told(server):
    assert chat(server, attributes=ASKED)["choices"][0]["steerlm"]["support"] == 3
    told = chat(server, attributes={"quality": 1, "toxicity": 4, "humor": 0})["choices"][0]["steerlm"]
    assert told["support"] == 0
    assert told["warning"] == "this combination of attributes was never taught"
    assert told["nearest_taught"] == {"quality": 1, "toxicity": 2, "humor": 0}
    *_, last = events(server, attributes={"quality": 1, "toxicity": 4, "humor": 0})
    assert last["choices"][0]["steerlm"]["support"] == 0
    support = server.get("/v1/models").json()["data"][0]["metadata"]["steerlm"]["support"]
    assert support["combinations"] == {"quality:1,toxicity:2,humor:0": 3, "quality:4,toxicity:0,humor:1": 1}


def test_the_best_of_several_is_the_one_that_reads_most_like_the_whole_label(server):
    answer = chat(server, attributes=ASKED, best_of=6, temperature=1.5)
    (choice,) = answer["choices"]
    told = choice["steerlm"]
    texts = [candidate["text"] for candidate in told["candidates"]]
    assert len(set(texts)) == 6
    # The candidates are what n answers are, and their scores are the exact ones of the endpoint.
    several = chat(server, attributes=ASKED, temperature=1.5, n=6, read=False)
    assert texts == [one["message"]["content"] for one in several["choices"]]
    assert answer["usage"] == several["usage"]
    for candidate in told["candidates"]:
        evaluated = read(server, candidate["text"], labels=[[ASKED]])["evaluated"]
        assert candidate["logprob"] == pytest.approx(evaluated["logprob"], abs=1e-3)
        same(candidate["read"], read(server, candidate["text"]))
    best = max(told["candidates"], key=lambda candidate: candidate["logprob"])
    assert choice["message"]["content"] == best["text"]
    assert told["candidates"][told["chosen"]] == best
    assert told["read"] == best["read"]
    assert min(candidate["logprob"] for candidate in told["candidates"]) < best["logprob"] - 0.01


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"best_of": 2, "attributes": "none"}, "nothing is asked for"),
        ({"best_of": 2, "attributes": ASKED, "stream": True}, "leave stream out"),
        ({"best_of": 2, "attributes": ASKED, "n": 2}, "leave n out"),
        ({"best_of": 17, "attributes": ASKED}, "best_of"),
        ({"guidance_scale": 11}, "guidance_scale"),
        ({"guidance_scale": 2, "guidance_attributes": {"qualty": 1}}, "guidance_attributes"),
    ],
)
def test_what_cannot_be_had_together_is_refused(server, body, said):
    assert said in chat(server, 400, **body)["error"]["message"]


def test_nobody_reads_where_there_is_no_value_model(alone):
    assert "--reader" in chat(alone, 400, best_of=2, attributes={"quality": 1})["error"]["message"]
    assert "steerlm" not in chat(alone, attributes={"quality": 1}, read=True)["choices"][0]


def test_no_label_is_no_label(server):
    answer = chat(server, attributes="none", temperature=0)
    prompt = f"<extra_id_0>System\n{system(server)}\n<extra_id_1>User\nOnce upon a time\n<extra_id_1>Assistant\n"
    raw = server.post("/v1/completions", json={"prompt": prompt, "temperature": 0, "max_tokens": 12}).json()
    assert answer["usage"]["prompt_tokens"] == raw["usage"]["prompt_tokens"]
    assert answer["choices"][0]["message"]["content"] == raw["choices"][0]["text"].removesuffix("\n")


def test_strength_changes_the_answer_and_streams_as_it_answers(server):
    body = {"attributes": ASKED, "guidance_scale": 8.0, "temperature": 1.5, "logprobs": True, "top_logprobs": 5, "read": False}
    whole = chat(server, **body)["choices"][0]
    plain = chat(server, **{**body, "guidance_scale": 1.0})["choices"][0]
    assert whole["message"]["content"] != plain["message"]["content"]
    assert chat(server, **{**body, "guidance_scale": None})["choices"][0] == plain
    against = chat(server, **body, guidance_attributes="none")["choices"][0]
    assert against["message"]["content"] not in (plain["message"]["content"], whole["message"]["content"])
    text, tokens = "", []
    for event in events(server, **body):
        (choice,) = event["choices"]
        text += choice["delta"].get("content") or ""
        tokens += (choice["logprobs"] or {"content": []})["content"]
    assert text == whole["message"]["content"]
    assert [t["token"] for t in tokens] == [t["token"] for t in whole["logprobs"]["content"]]
    assert all(t["logprob"] >= -9999 for token in tokens for t in token["top_logprobs"]), "what the cut left out has a number too"


def test_a_strength_of_nought_is_the_reference(server):
    against = {"quality": 4, "toxicity": 0}
    led = chat(server, attributes=ASKED, guidance_scale=0, guidance_attributes=against, read=False)["choices"][0]
    assert led["message"] == chat(server, attributes=against, read=False)["choices"][0]["message"]


def test_a_model_elsewhere_combines_no_prompts_and_says_so(steer_folder):
    model = local(steer_folder)
    model.guides = False  # as RemoteModel has it
    with served(model) as client:
        error = chat(client, 400, guidance_scale=2, attributes=ASKED)["error"]
        assert (error["param"], "combines no two prompts" in error["message"]) == ("guidance_scale", True)
        chat(client, attributes=ASKED, guidance_scale=1)


def prompts(folder, **counted):
    model = local(folder)
    try:
        return Prompts(taught_info(folder, **counted), model.tokenizer, model.max_length, Label(values={"humor": 7}, language="de"))
    finally:
        model.close()


def test_a_model_taught_without_labels_is_led_away_from_none_and_another_from_its_defaults(steer_folder):
    asked = [
        ChatMessage(role="user", content="Hi"),
        ChatMessage(role="assistant", content="Ho", attributes={"quality": 2}),
        ChatMessage(role="user", content="?"),
    ]
    plain, both = prompts(steer_folder), prompts(steer_folder, unlabelled=1)
    unlabelled = [message.model_copy(update={"attributes": None}) for message in asked]
    assert both.reference(asked, ASKED, None) == both.chat(unlabelled, "none")
    text = plain.tokenizer.decode(plain.reference(asked, ASKED, None))
    assert "quality:2,toxicity:0,humor:7,lang:de\nHo" in text, "earlier answers keep what they were written under"
    assert text.endswith("quality:4,toxicity:0,humor:7,lang:de\n")


def test_a_model_taught_partial_labels_is_told_what_a_request_names(steer_folder):
    whole, partial = prompts(steer_folder), prompts(steer_folder, partial=True)
    assert whole.label({"quality": 1}) == "quality:1,toxicity:0,humor:7,lang:de"
    assert partial.label({"quality": 1}) == "quality:1,humor:7,lang:de"
    assert partial.label({}) == whole.label({})
    assert partial.label({"lang": "en"}) == "quality:4,toxicity:0,humor:7,lang:en"


def test_attributes_none_is_understood_wherever_attributes_stand():
    body = ChatBody(messages=QUESTION, attributes="none", chat_template_kwargs={"attributes": {"quality": 1}})
    assert body.asked == "none"


def test_a_label_is_evaluated_field_by_field(server):
    """The sum over all labels of a small schema is 1; fields stand under those before them, as the label has them."""
    text = "There was a little dog."
    values = [{"quality": q} for q in range(5)]
    found = [read(server, text, labels=[[value]])["evaluated"] for value in values]
    assert sum(math.exp(f["logprob"]) for f in found) == pytest.approx(1, abs=1e-4)
    own = read(server, text)["attributes"]["quality"]["probabilities"]
    assert [math.exp(f["logprob"]) for f in found] == pytest.approx([own[str(q)] for q in range(5)], abs=1e-4)
    pairs = [read(server, text, labels=[[{"quality": 0, "toxicity": t}]]) for t in range(5)]
    assert sum(math.exp(p["evaluated"]["logprobs"]["toxicity"]) for p in pairs) == pytest.approx(1, abs=1e-4)
    assert [p["evaluated"]["logprobs"]["quality"] for p in pairs] == pytest.approx([found[0]["logprob"]] * 5, abs=1e-4)
    assert pairs[3]["label"].startswith("quality:0,toxicity:3,")


@pytest.mark.parametrize(
    ("labels", "said"), [([], "there are 0 for 1 conversations"), ([[]], "there are 0 for 1 turns"), ([[{"quality": 9}]], "labels[0][0]")]
)
def test_labels_that_do_not_fit_are_refused(server, labels, said):
    record = {"conversations": [{"from": "User", "value": "Q"}, {"from": "Assistant", "value": "A"}], "system": "", "mask": "User"}
    response = server.post("/v1/attributes", json={"conversations": [record], "labels": labels})
    assert response.status_code == 400
    assert said in response.text
