"""What a request says is done, or refused in a sentence that names the field. Over real sockets."""

from __future__ import annotations

import json
import re

import httpx
import msgspec
import pytest

from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.tokenization import load_tokenizer
from tests.serving.servers import running
from tests.serving.tiny_models import parrot

USER = [{"role": "user", "content": "Once upon a time"}]
CHAT = {"messages": USER, "max_tokens": 4, "temperature": 0}
RAW = {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def writer(steer_server):
    with steer_server.client() as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer(steer_folder):
    return load_tokenizer(steer_folder)


def refused(client: httpx.Client, path: str, body: dict, status: int = 400) -> dict:
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert not re.search(r"Input should|Value error|function-after|\[_|pydantic", error["message"]), error["message"]
    return error


def text(client: httpx.Client, **options) -> str:
    return client.post("/v1/completions", json=RAW | options).raise_for_status().json()["choices"][0]["text"]


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("response_format", {"type": "json_object"}, "is not supported: answers are plain text"),
        ("tools", [{"type": "function", "function": {"name": "f"}}], "is not supported: this server calls no tools"),
        ("tool_choice", "required", "is not supported"),
        ("reasoning_effort", "high", "is not supported"),
        ("verbosity", "low", "ask for it as an attribute"),
        ("attribute", {"quality": 1}, "did you mean attributes?"),
        ("temprature", 0.5, "did you mean temperature?"),
        ("guided_json", {}, "there is no such field"),
        ("max_tokens", True, "must be a valid integer, not True"),
        ("max_tokens", "8", "must be a valid integer, not '8'"),
        ("temperature", True, "must be a valid number, not True"),
        ("temperature", 101, "must be less than or equal to 100, not 101"),
        ("stream", 1, "must be a valid boolean, not 1"),
        ("frequency_penalty", 2.5, "must be less than or equal to 2"),
        ("logit_bias", {"x": 1}, "token id 'x' is none"),
        ("logit_bias", {"99999": 1}, "token id 99999 does not exist"),
        ("allowed_token_ids", [99999], "token id 99999 does not exist"),
        ("attributes", {"quality": True}, "quality is True"),
        ("attributes", {"quality": "3"}, "quality is '3'"),
        ("attributes", {"quality": 1.5}, "quality is 1.5"),
        ("stop", ["x"] * 17, "at most 16 items"),
        ("stop", ["x" * 300], "at most 256 characters"),
    ],
)
def test_a_field_that_cannot_be_done_is_refused_by_name(writer, field, value, says):
    error = refused(writer, "/v1/chat/completions", CHAT | {field: value})
    assert error["param"].startswith(field)
    assert error["type"] == "invalid_request_error"
    assert says in error["message"]


@pytest.mark.parametrize(
    ("message", "param", "says"),
    [
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:"}}]},
            "messages[0].content",
            "part 1 has type 'image_url'; only text parts are taken",
        ),
        ({"role": "user", "content": None}, "messages[0].content", "content must be text, not None"),
        ({"role": "user"}, "messages[0].content", "is missing"),
        ({"role": "tool", "content": "a", "tool_call_id": "1"}, "messages[0].role", "tool turns are not supported"),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, "messages[0].tool_calls", "calls no tools"),
        ({"role": "user", "content": "a", "name": "Ann"}, "messages[0].name", "is not supported"),
        ({"role": "user", "content": "a", "attribute": {}}, "messages[0].attribute", "did you mean attributes?"),
        ({"role": "bot", "content": "a"}, "messages[0].role", "must be 'system', 'developer', 'user' or 'assistant'"),
        ({"role": "user", "content": "\ud800"}, "messages[0].content", "unpaired surrogate"),
    ],
)
def test_so_is_a_message(writer, message, param, says):
    answer = writer.post("/v1/chat/completions", content=json.dumps({"messages": [message]}), headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], says in error["message"]) == (param, True), error


def test_what_asks_for_nothing_is_let_through(writer):
    plain = writer.post("/v1/chat/completions", json=CHAT).json()["choices"]
    turns = [*USER, {"role": "assistant", "content": None, "tool_calls": [], "refusal": None, "annotations": []}, *USER]
    asked = CHAT | {
        "response_format": {"type": "text"}, "tools": [], "tool_choice": "none", "user": "me", "store": False, "metadata": {"a": "b"},
        "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "suffix": None, "model": "writer", "best_of": None,
    }  # fmt: skip
    assert writer.post("/v1/chat/completions", json=asked).json()["choices"] == plain
    assert writer.post("/v1/chat/completions", json=CHAT | {"messages": turns}).status_code == 200


def test_a_completion_that_cannot_be_done_is_refused_too(writer):
    error = refused(writer, "/v1/completions", RAW | {"suffix": "the end"})
    assert (error["param"], "a prompt is continued, not filled in" in error["message"]) == ("suffix", True)
    assert "did you mean prompt?" in refused(writer, "/v1/completions", {"promt": "a"})["message"]


def test_what_is_no_json_is_told_so(writer):
    json_type = {"Content-Type": "application/json"}
    said = writer.post("/v1/chat/completions", content=b'{"messages": [],}', headers=json_type).json()["error"]["message"]
    assert said.startswith("the body is not JSON: ")
    assert said.endswith("at character 16")
    said = writer.post("/v1/chat/completions", content=json.dumps(CHAT)).json()["error"]["message"]
    assert said == "send a JSON object, with the header Content-Type: application/json"
    assert writer.post("/v1/chat/completions", content=b"[]", headers=json_type).json()["error"]["message"].startswith("the body must be")
    twice = b'{"messages": [{"role": "user", "content": "Hi"}], "attributes": {"quality": 0, "quality": 4}}'
    said = writer.post("/v1/chat/completions", content=twice, headers=json_type)
    assert (said.status_code, said.json()["error"]["message"]) == (400, "the key 'quality' stands twice in one object; keep one of them")
    assert "is empty" in writer.post("/v1/chat/completions", headers=json_type).json()["error"]["message"]


def test_penalties_and_biases_change_the_answer(writer, tokenizer):
    plain = text(writer, max_tokens=40)
    for penalty in ({"frequency_penalty": 2}, {"presence_penalty": 2}):
        assert len(set(tokenizer.encode(text(writer, max_tokens=40, **penalty)))) > len(set(tokenizer.encode(plain)))
    chosen = tokenizer.encode(" dog")[-1]
    only = tokenizer.decode([chosen]).strip() * 12
    assert text(writer, logit_bias={str(chosen): 100}).replace(" ", "") == only
    first = tokenizer.encode(plain)[0]
    banned = writer.post("/v1/completions", json=RAW | {"logit_bias": {str(first): -100}, "logprobs": 0}).json()["choices"][0]
    assert banned["text"] != plain
    assert text(writer, allowed_token_ids=[chosen]).replace(" ", "") == only


def test_an_unknown_model_is_a_404_and_the_readers_name_is_the_readers(steer_folder, value_folder):
    with running(steer_folder, "--name", "w", "--reader", str(value_folder)) as server, server.client() as client:
        error = refused(client, "/v1/chat/completions", CHAT | {"model": "gpt-4"}, 404)
        assert error["code"] == "model_not_found"
        assert "w and w-reader" in error["message"]
        assert refused(client, "/v1/attributes", {"messages": USER, "model": "x"}, 404)["code"] == "model_not_found"
        assert refused(client, "/v1/completions", RAW | {"model": ""}, 404)
        assert client.get("/v1/models/nobody").json()["error"]["type"] == "not_found_error"
        answers = {name: client.post("/v1/completions", json=RAW | {"model": name}).json() for name in ("w", "w-reader")}
        assert {name: answer["model"] for name, answer in answers.items()} == {"w": "w", "w-reader": "w-reader"}
        assert answers["w"]["choices"][0]["text"] != answers["w-reader"]["choices"][0]["text"]
        assert "value model" in refused(client, "/v1/chat/completions", CHAT | {"model": "w-reader"})["message"]
        body = {"messages": [*USER, {"role": "assistant", "content": "The cat sat"}]}
        assert client.post("/v1/attributes", json=body | {"model": "w-reader"}).status_code == 200
        assert "steerlm_scored_turns_total 1.0" in client.get("/metrics").text
        assert client.get("/metrics").text.count("# TYPE steerlm_scored_turns_total") == 1


def test_minus_one_token_is_no_limit_and_none_cost_nothing(writer):
    whole = writer.post("/v1/completions", json=RAW | {"max_tokens": -1}).json()
    assert whole["usage"]["total_tokens"] == 512 or whole["choices"][0]["finish_reason"] == "stop"
    assert whole["usage"]["completion_tokens"] > 16
    assert writer.post("/v1/chat/completions", json=CHAT | {"max_tokens": -1}).status_code == 200
    assert writer.post("/v1/chat/completions", json=CHAT | {"max_completion_tokens": -1}).status_code == 200
    for path, body in (
        ("chat/completions", CHAT),
        ("completions", RAW | {"echo": True}),
        ("completions", RAW | {"echo": True, "logprobs": 1}),
    ):
        none = writer.post(f"/v1/{path}", json=body | {"max_tokens": 0}).json()
        assert none["usage"]["completion_tokens"] == 0
        assert none["choices"][0]["finish_reason"] == "length"
        stream = writer.post(f"/v1/{path}", json=body | {"max_tokens": 0, "stream": True, "stream_options": {"include_usage": True}}).text
        assert json.loads(stream.strip().splitlines()[-3].removeprefix("data: "))["usage"] == none["usage"]
    assert none["choices"][0]["text"] == "Once upon a time"
    assert len(none["choices"][0]["logprobs"]["tokens"]) == none["usage"]["prompt_tokens"]


def test_choices_of_neighbouring_seeds_differ(writer):
    drawn = RAW | {"temperature": 1.0, "max_tokens": 20}
    first, second = (
        [choice["text"] for choice in writer.post("/v1/completions", json=drawn | {"seed": seed, "n": 2}).json()["choices"]]
        for seed in (5, 6)
    )
    assert len({*first, *second}) == 4, "choice 1 of seed 5 is not choice 0 of seed 6"
    assert first[0] == text(writer, temperature=1.0, max_tokens=20, seed=5)


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-300])
def test_a_tiny_temperature_is_greedy(writer, temperature):
    assert text(writer, temperature=temperature, seed=1) == text(writer) != ""
    body = {"sentences": [RAW["prompt"]], "tokens_to_generate": 12, "temperature": temperature}
    assert (
        writer.put("/generate", json=body).json()["sentences"] == writer.put("/generate", json=body | {"greedy": True}).json()["sentences"]
    )


def test_a_prompt_that_does_not_fit_says_so_in_openais_words(writer):
    for path, body in (
        ("chat/completions", {"messages": [{"role": "user", "content": "Once " * 600}]}),
        ("completions", {"prompt": "Once " * 600}),
    ):
        for long in (body, json.loads(json.dumps(body).replace("Once ", "Once upon a time " * 20))):
            error = refused(writer, f"/v1/{path}", long)
            assert error["code"] == "context_length_exceeded"
            assert "the prompt is too long: " in error["message"], "some clients look for these words"


def test_head_and_a_slash_at_the_end(writer):
    for path in ("/v1/models", "/v1/models/writer", "/health/ready", "/health/live", "/metrics", "/docs", "/openapi.json"):
        whole, head, slash = writer.get(path), writer.head(path), writer.get(f"{path}/")
        assert (head.status_code, head.content) == (200, b""), path
        assert head.headers["content-type"] == whole.headers["content-type"]
        assert slash.status_code == 200
    assert writer.get("/v1/models/").json() == writer.get("/v1/models").json()
    assert writer.post("/v1/chat/completions/", json=CHAT).status_code == 200
    assert writer.head("/v1/completions").status_code == 405


def events(client: httpx.Client, path: str, body: dict) -> list[dict]:
    lines = client.post(path, json=body | {"stream": True}).text.split("\n\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


def test_partial_characters_have_their_bytes_and_places(writer, tokenizer):
    euro = [tokenizer.token_id(f"<0x{byte:02X}>") for byte in "€".encode()]
    prompt = [*tokenizer.encode("Once"), *euro, *tokenizer.encode("upon"), euro[0]]
    body = {"prompt": prompt, "max_tokens": 2, "logit_bias": {str(euro[1]): 100}, "temperature": 0, "logprobs": 0, "echo": True}
    choice = writer.post("/v1/completions", json=body).json()["choices"][0]
    told = choice["logprobs"]
    at = len(tokenizer.encode("Once"))
    assert told["tokens"][at : at + 3] == ["bytes:\\xe2", "bytes:\\x82", "bytes:\\xac"]
    assert told["text_offset"][at : at + 4] == [4, 4, 4, 5]
    assert choice["text"][4] == "€"
    chat = CHAT | {"logit_bias": {str(euro[0]): 100}, "logprobs": True, "top_logprobs": 1}
    content = writer.post("/v1/chat/completions", json=chat).json()["choices"][0]["logprobs"]["content"]
    assert [(entry["bytes"], entry["token"]) for entry in content] == [([0xE2], "bytes:\\xe2")] * 4


def test_a_stream_of_completions_has_the_prompts_probabilities_and_the_same_places(writer):
    body = RAW | {"logprobs": 2, "echo": True, "n": 2}
    whole = writer.post("/v1/completions", json=body).json()["choices"]
    parts = [{"text": "", "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []} for _ in range(2)]
    for event in events(writer, "/v1/completions", body):
        for choice in event["choices"]:
            parts[choice["index"]]["text"] += choice["text"]
            for name, values in (choice["logprobs"] or {}).items():
                parts[choice["index"]][name] += values
    for part, choice in zip(parts, whole, strict=True):
        assert part.pop("text") == choice["text"]
        for name, values in part.items():
            assert len(values) == len(choice["logprobs"][name]), name
        assert (part["tokens"], part["text_offset"]) == (choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"])
        assert part["token_logprobs"][1:] == pytest.approx(choice["logprobs"]["token_logprobs"][1:], abs=1e-4)


def test_an_end_of_turn_of_several_characters_leaves_no_rest(steer_folder, tmp_path):
    info = ModelInfo.load(steer_folder)
    info = msgspec.structs.replace(info, tokens=msgspec.structs.replace(info.tokens, end_of_turn="</end>"))
    with running(parrot(steer_folder, tmp_path / "parrot", "Go</end>", info), "--no-page") as server, server.client() as client:
        (choice,) = client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 50}).json()["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Go", "stop")
        told = events(client, "/v1/chat/completions", CHAT | {"max_tokens": 50})
        assert "".join(event["choices"][0]["delta"].get("content", "") for event in told) == "Go"
        cut = client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 4}).json()["choices"][0]
        assert cut["finish_reason"] == "length"
        assert cut["message"]["content"].startswith("Go"), "what was cut is no end of a turn"
