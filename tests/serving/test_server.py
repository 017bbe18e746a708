from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from tests.serving.servers import WAIT, connected, running, until

REPOSITORY = Path(__file__).parents[2]
LONG = {"prompt": "Once upon a time", "max_tokens": 400, "min_tokens": 400}


def test_health_docs_and_metrics(steer_server):
    with steer_server.client() as client:
        assert client.get("/health/live").status_code == client.get("/health/ready").status_code == 200
        docs = client.get("/docs")
        page, policy = docs.text, docs.headers["content-security-policy"]
        style = hashlib.sha256(page.partition("<style>")[2].partition("</style>")[0].encode()).digest()
        assert f"default-src 'none'; style-src 'sha256-{base64.b64encode(style).decode()}';" in policy
        assert "/v1/chat/completions" in page
        assert "http" not in page.replace("http-equiv", ""), "the page loads nothing"
        assert client.get("/nowhere").json()["error"]["code"] == "not_found"


def metrics(client: httpx.Client) -> dict[str, float]:
    lines = [line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_metrics_count_what_was_done(steer_server, value_server):
    with steer_server.client() as client:
        until(lambda: metrics(client)["steerlm_running"] == 0)  # what another test's client left behind
        before = metrics(client)
        usage = client.post("/v1/completions", json={"prompt": "a b", "max_tokens": 5, "min_tokens": 5, "n": 3}).json()["usage"]
        after = metrics(client)
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    assert grown["steerlm_generated_tokens_total"] == usage["completion_tokens"] == 15
    assert grown["steerlm_prompt_tokens_total"] == 3 * usage["prompt_tokens"]
    assert grown["steerlm_first_token_seconds_count"] == 3
    assert grown['steerlm_request_seconds_count{path="/v1/completions",status="200"}'] == 1
    assert 5 <= grown["steerlm_generate_batch_rows_count"] <= 15
    assert grown["steerlm_generate_batch_rows_sum"] == 15, "rows of all steps: one a token"
    assert (after["steerlm_waiting"], after["steerlm_running"]) == (0, 0)
    with value_server.client() as client:
        before = metrics(client)
        body = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The cat sat"}]}
        assert client.post("/v1/attributes", json=body).status_code == 200
        after = metrics(client)
    assert after["steerlm_scored_turns_total"] - before["steerlm_scored_turns_total"] == 1
    assert after["steerlm_score_batch_rows_count"] - before["steerlm_score_batch_rows_count"] == 1


SECRET = "a word that nobody may read"


def test_cors_timeouts_and_a_log_of_prompts_are_there_for_those_who_ask(steer_folder, steer_server, tmp_path):
    ours, body = {"Origin": "https://ours.example"}, {"prompt": SECRET, "n": 64, "max_tokens": 400, "min_tokens": 400}
    preflight = ours | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    options = ("--cors-origin", ours["Origin"], "--request-timeout", "0.3", "--log-prompts", "--api-key", "secret", "--no-page")
    log = tmp_path / "log"
    with running(steer_folder, *options, log=log) as server, httpx.Client(base_url=server.url, timeout=WAIT) as client:
        assert client.options("/v1/completions", headers=preflight).headers["access-control-allow-origin"] == ours["Origin"]
        theirs = client.options("/v1/completions", headers=preflight | {"Origin": "https://theirs.example"})
        assert "access-control-allow-origin" not in theirs.headers
        refused = client.get("/v1/models", headers=ours)
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, ours["Origin"])
        client.headers["Authorization"] = "Bearer secret"
        assert client.get("/").status_code == 404
        late = client.post("/v1/completions", json=body)
        assert (late.status_code, late.json()["error"]["code"]) == (408, "timeout")
        assert (
            client.put("/generate", json={"sentences": ["a"] * 64, "min_tokens_to_generate": 400, "tokens_to_generate": 400}).status_code
            == 408
        )
        last = client.post("/v1/completions", json=body | {"stream": True}).text.strip().splitlines()[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        until(lambda: metrics(client)["steerlm_running"] == 0)
    assert SECRET in log.read_text()
    with steer_server.client() as client:
        assert "access-control-allow-origin" not in client.get("/v1/models", headers=ours).headers
        assert client.options("/v1/completions", headers=preflight).status_code == 405


def request(body: object, *, length: int | None = None, token: str = "") -> bytes:
    """``POST /v1/completions``; its body is not whole where ``length`` says more than it has."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {length or len(content)}\r\n\r\n".encode() + content


def test_limits_and_token(steer_folder, tmp_path):
    options = ("--max-rows", "1", "--max-waiting", "1", "--max-body-mb", "0.01", "--api-key", "secret")
    log = tmp_path / "log"
    with running(steer_folder, *options, log=log) as server:
        assert httpx.get(f"{server.url}/health/ready", timeout=WAIT).status_code == 200
        assert httpx.get(f"{server.url}/v1/models", timeout=WAIT).status_code == 401
        with server.client() as client:
            client.headers["Authorization"] = "Bearer secret"
            assert client.post("/v1/completions", json={"prompt": "x" * 20_000}).status_code == 413
            assert client.put("/generate", content=(b"x" * 1000 for _ in range(20))).status_code == 413
            with connected(server, request(LONG | {"n": 64, "stream": True}, token="secret")):
                until(lambda: metrics(client)["steerlm_waiting"] > 0)
                full = client.post("/v1/completions", json=LONG)
                assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
                assert full.headers["retry-after"]
            until(lambda: metrics(client)["steerlm_waiting"] == 0)
            assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert {(e["path"], e["status"]) for e in entries if e["event"] == "request"} >= {("/v1/completions", 200), ("/v1/completions", 429)}
    assert LONG["prompt"] not in log.read_text(), "the log says nothing of what people wrote"


def test_an_orderly_end(steer_folder):
    """What is being answered is answered; what comes after the signal is refused. The half request keeps the server from ending first."""
    forever = ("--drain-seconds", "3600", "--read-timeout", "3600")
    with running(steer_folder, "--no-page", "--max-rows", "1", *forever) as server, server.client() as client:
        with connected(server, request(b'{"prompt": ', length=100)) as half:
            with client.stream("POST", "/v1/completions", json=LONG | {"n": 2, "stream": True}) as stream:
                lines = stream.iter_lines()
                first = next(lines)
                server.process.send_signal(signal.SIGTERM)
                until(lambda: client.get("/health/ready").status_code == 503)
                assert client.get("/health/live").status_code == 200
                refused = client.post("/v1/completions", json=LONG)
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
                events = [json.loads(line.removeprefix("data: ")) for line in [first, *lines] if line.startswith("data: {")]
            assert [choice["finish_reason"] for event in events for choice in event["choices"]].count("length") == 2
            assert server.process.poll() is None, "somebody is still being answered"
            half.close()
        assert server.process.wait(WAIT) == 0


def test_conversations_that_nobody_waits_for_are_not_read(value_server):
    turns = [{"from": "User", "value": "Once upon a time"}, {"from": "Assistant", "value": "there was a little girl"}]
    records = [{"system": "", "mask": "User", "conversations": turns}] * 1024
    content = json.dumps({"conversations": records}).encode()
    head = f"POST /v1/attributes HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    address = httpx.URL(value_server.url)
    with value_server.client() as client:
        before = metrics(client)["steerlm_scored_turns_total"]
        with socket.create_connection((address.host, address.port)) as connection:
            connection.sendall(head.encode() + content)
            until(lambda: metrics(client)["steerlm_waiting"] > 0)
        until(lambda: metrics(client)["steerlm_waiting"] == 0)
        client.post("/v1/attributes", json={"conversations": records[:1]}).raise_for_status()  # after what was begun
        assert metrics(client)["steerlm_scored_turns_total"] - before < 512


@pytest.fixture(scope="module")
def front_server(steer_folder, steer_server):
    """The same model through another server."""
    with running(steer_folder, "--engine", "openai", "--upstream", steer_server.url, "--no-page") as server:
        yield server


@pytest.fixture
def undisturbed(steer_server):
    """Ask a good question again and again meanwhile, and get its one answer each time."""
    over, answers = threading.Event(), []

    def ask() -> None:
        with steer_server.client() as client:
            while not over.is_set() or len(answers) < 2:
                body = {"prompt": "The little dog", "max_tokens": 20, "temperature": 0, "logprobs": 0}
                answers.append(client.post("/v1/completions", json=body).json()["choices"][0]["text"])

    asking = threading.Thread(target=ask)
    asking.start()
    yield
    over.set()
    asking.join()
    assert len(set(answers)) == 1
    assert answers[0]


def brief(case: schemathesis.Case) -> None:
    """Ask for four tokens instead of more: a whole context 64 times, which the document allows, takes a slow machine minutes."""
    if isinstance(case.body, dict) and case.path.endswith("completions"):
        for name in {"max_tokens", "max_completion_tokens"} & {"max_tokens", *case.body}:
            limit = case.body.get(name)
            if limit is None or (type(limit) is int and -1 <= limit <= 1_000_000):
                case.body = {**case.body, name: 4}


@pytest.mark.timeout(900)  # three servers may have to start for it
def test_malformed_requests_get_no_5xx_and_touch_no_other(steer_server, value_server, front_server, undisturbed):
    """What the document of the API, which all servers have, allows and forbids."""
    document = httpx.get(f"{steer_server.url}/openapi.json", timeout=WAIT).json()
    schema = schemathesis.openapi.from_dict(document).include(path_regex="^/(v1|health)/")
    urls = [server.url for server in (steer_server, value_server, front_server)]
    for operation in schema.get_all_operations():
        for mode in schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE:
            cases = operation.ok().as_strategy(generation_mode=mode)

            @given(case=cases)
            @settings(max_examples=6, suppress_health_check=list(HealthCheck), database=None)
            def attack(case):
                brief(case)
                for url in urls:
                    assert case.call(base_url=url, timeout=WAIT).status_code < 500

            with contextlib.suppress(Unsatisfiable):  # nothing can be wrong with a request that has no parameters
                attack()


HALF = "\\ud800"


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"prompt": ' + b"9" * 5_000 + b"}",
        b'{"prompt": "a", "temperature": 1e400, "max_tokens": 1}',
        b'{"prompt": "a", "max_tokens": 1, "seed": 1e400}',
        f'{{"prompt": "{HALF}"}}'.encode(),
        f'{{"{HALF}": 1, "messages": [{{"role": "{HALF}", "content": "a"}}]}}'.encode(),
        f'{{"messages": [{{"role": "user", "content": "a"}}], "attributes": {{"{HALF}": 1}}}}'.encode(),
        f'{{"messages": [{{"role": "user", "content": "a"}}], "attributes": {{"lang": "{HALF}"}}}}'.encode(),
        f'{{"conversations": [{{"conversations": [{{"from": "{HALF}", "value": "a", "label": "{HALF}"}}], "{HALF}": 1}}]}}'.encode(),
        f'{{"conversations": [{{"conversations": [{{"from": "a", "value": 1}}], "mask": "{HALF}"}}]}}'.encode(),
        b'{"messages": [{"role": "system", "content": "a"}]}',
        b'{"prompt": "a", "logprob_token_ids": [99999999999999999999], "logprobs": 1}',
        b'{"prompt": [99999999999999999999]}',
        b'{"prompt": "a", "stop": ["", "\\u0000"], "stop_token_ids": [-1, 99999999999999999999], "max_tokens": 3}',
        b'{"prompt": "a", "messages": [{"role": "user", "content": "a"}], "stop_token_ids": [515], "min_tokens": 1, "max_tokens": 3}',
    ],
)
def test_what_is_no_request_is_a_400(steer_server, value_server, front_server, content):
    for server in (steer_server, value_server, front_server):
        with server.client() as client:
            for path in ("/v1/completions", "/v1/chat/completions", "/v1/attributes"):
                answer = client.post(path, content=content, headers={"Content-Type": "application/json"})
                assert answer.status_code in (200, 400), (path, answer.text)
                answer.json()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
OPTIONS = {
    "tokens_to_generate": st.integers(1, 5) | st.just(10**30),
    "min_tokens_to_generate": st.integers(0, 5) | st.just(10**30),
    "all_probs": st.booleans(),
    "compute_logprob": st.booleans(),
    "temperature": st.floats(1e-300, 100.0),
    "add_BOS": st.booleans(),
    "greedy": st.booleans(),
    "top_k": st.integers(0, 10**30) | st.floats(0) | st.just(float("inf")),
    "top_p": st.floats(0.0, 1.0),
    "repetition_penalty": st.floats(1.0) | st.just(float("inf")),
    "end_strings": st.lists(st.text(max_size=4), max_size=4),
    "random_seed": st.none() | st.integers(0, 10**30),
    "neighbors": st.integers(0, 9),
}
"""Values that upstream allows; the fuzz mixes in some that it does not."""


@settings(max_examples=150, suppress_health_check=list(HealthCheck), database=None)
@given(
    sentences=st.lists(st.text(max_size=9), min_size=1, max_size=3) | JSON,
    options=st.fixed_dictionaries({}, optional={key: valid | JSON for key, valid in OPTIONS.items()}),
    fronted=st.booleans(),
)
@example(sentences=["Once"], options={"repetition_penalty": float("inf")}, fronted=True)
@example(sentences=["Once"], options={"temperature": 1e300}, fronted=True)
@example(sentences=["Once"], options={"top_k": 10**30}, fronted=True)
def test_nothing_breaks_generate(steer_server, front_server, sentences, options, fronted):
    server = front_server if fronted else steer_server
    options.setdefault("tokens_to_generate", 3)
    answer = httpx.put(f"{server.url}/generate", content=json.dumps({"sentences": sentences, **options}), timeout=WAIT)
    assert answer.status_code in (200, 400)
    answer.json()


def test_all_probabilities_in_front_of_another_server_are_refused_in_words(front_server):
    answer = httpx.put(f"{front_server.url}/generate", json={"sentences": ["Once"], "all_probs": True}, timeout=WAIT)
    assert answer.status_code == 400
    assert "all_probs is not offered in front of another server" in answer.text


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["gpt_model_file=x.nemo", "server=True", "prt=1"], 2, "unknown flag prt: did you mean port?"),
        (
            ["gpt_model_file=x.nemo", "server=True", "tensor_model_parallel_size=2", "trainer.devices=1"],
            78,
            "should equal tensor_model_parallel_size",
        ),
        (["gpt_model_file=x.nemo"], 2, "server=True is needed"),
        (["gpt_model_file=none.nemo", "server=True"], 2, "no such file"),
    ],
)
def test_the_tutorials_flags_are_checked_before_a_model_is_loaded(flags, code, message):
    ran = subprocess.run(
        [sys.executable, "examples/megatron_gpt_eval.py", *flags], cwd=REPOSITORY, capture_output=True, text=True, timeout=WAIT, check=False
    )
    assert ran.returncode == code
    assert message in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1
