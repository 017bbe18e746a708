"""The clients that people have, unchanged: litellm and langchain-openai in an environment of their own, and curl."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.environments import environment

CHAT = {"model": "writer", "messages": [{"role": "user", "content": "Once upon a time"}], "temperature": 0, "max_tokens": 12}
UNDER = {"attributes": {"quality": 1, "lang": "de"}}
ERRORS = {
    "litellm": {
        "too long": "ContextWindowExceededError",
        "unknown field": "BadRequestError",
        "unknown model": "NotFoundError",
        "tools": "BadRequestError",
    },
    "langchain": {"too long": "ContextOverflowError", "unknown field": "BadRequestError", "unknown model": "NotFoundError"},
}
SAYS = {
    "too long": "this model takes 511",
    "unknown field": "did you mean attributes?",
    "unknown model": "no such model",
    "tools": "no tools",
}


@pytest.fixture(scope="module")
def told(steer_server):
    python = environment("clients-1", ["litellm==1.110.2", "langchain-openai==1.7.4"])
    command = [python, Path(__file__).with_name("asking_clients.py"), steer_server.url]
    quiet = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    quiet |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "TIKTOKEN_CACHE_DIR": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=quiet, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not os.environ.get("STEERLM_TEST_ENGINES"), reason="runs with make test-engines")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("client", ["litellm", "langchain"])
def test_clients_in_front_of_many_servers_get_answers_and_their_own_errors(steer_server, told, client):
    found = told[client]
    with steer_server.client() as http:
        answer = http.post("/v1/chat/completions", json=CHAT | UNDER).json()
        raw = http.post("/v1/completions", json={"prompt": "Once upon a time", "temperature": 0, "max_tokens": 12}).json()
    text, usage = answer["choices"][0]["message"]["content"], answer["usage"]
    assert found["chat"] == [text, "length", usage["prompt_tokens"], usage["completion_tokens"]]
    assert found["stream"] == text
    assert found["completion"] == raw["choices"][0]["text"]
    assert found.get("logprobs", 12) == 12
    for what, error in ERRORS[client].items():
        assert error in found[what]["bases"], found[what]
        assert SAYS[what] in found[what]["said"]


def test_curl_gets_an_answer_a_stream_and_an_error(steer_server):
    curl = shutil.which("curl") or pytest.skip("no curl here")

    def asked(body: dict, *options: str) -> str:
        command = [curl, "-sS", *options, f"{steer_server.url}/v1/chat/completions", "--json", json.dumps(body)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    text = json.loads(asked(CHAT))["choices"][0]["message"]["content"]
    events = [line.removeprefix("data: ") for line in asked(CHAT | {"stream": True}, "-N").splitlines() if line]
    assert events[-1] == "[DONE]"
    assert "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1]) == text
    assert asked(CHAT | {"n": 0}, "-o", "/dev/null", "-w", "%{http_code}") == "400"
