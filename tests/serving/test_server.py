from __future__ import annotations

import concurrent.futures
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serving.servers import running

REPOSITORY = Path(__file__).parents[2]
LONG = {"prompt": "Once upon a time", "max_tokens": 400, "min_tokens": 400}


def until(condition, seconds: float = 20.0):
    import time

    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"


def test_health_docs_and_metrics(steer_server):
    with steer_server.client() as client:
        assert client.get("/health/live").status_code == client.get("/health/ready").status_code == 200
        page = client.get("/docs").text
        assert "/v1/chat/completions" in page
        assert "http" not in page.replace("http-equiv", ""), "the page loads nothing"
        client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2})
        told = client.get("/metrics").text
        assert 'steerlm_request_seconds_count{path="/v1/completions",status="200"}' in told
        assert "steerlm_first_token_seconds_count" in told
        assert client.get("/nowhere").json()["error"]["code"] == "not_found"


def test_limits_token_and_an_orderly_end(steer_folder):
    options = ("--max-rows", "1", "--max-waiting", "1", "--max-body-mb", "0.01", "--api-key", "secret")
    with running(steer_folder, *options) as server, concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert httpx.get(f"{server.url}/health/ready").status_code == 200
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        with httpx.Client(base_url=server.url, headers={"Authorization": "Bearer secret"}, timeout=60) as client:
            assert client.post("/v1/completions", json={"prompt": "x" * 20_000}).status_code == 413
            assert client.put("/generate", content=(b"x" * 1000 for _ in range(20))).status_code == 413
            answers = list(pool.map(lambda _: client.post("/v1/completions", json=LONG), range(8)))
            full = [a for a in answers if a.status_code == 429]
            assert full
            assert full[0].headers["retry-after"]
            assert {a.status_code for a in answers} == {200, 429}

            answer = pool.submit(client.post, "/v1/completions", json=LONG)
            until(lambda: "steerlm_running 1.0" in client.get("/metrics").text)
            server.process.send_signal(signal.SIGTERM)
            until(lambda: client.get("/health/ready").status_code == 503)
            assert client.get("/health/live").status_code == 200
            refused = client.post("/v1/completions", json=LONG)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            assert answer.result().json()["usage"]["completion_tokens"] == 400
        assert server.process.wait(20) == 0


def test_a_client_that_goes_away_frees_its_row(steer_server):
    with steer_server.client() as client:
        with client.stream("POST", "/v1/completions", json=LONG | {"stream": True, "n": 4}) as answer:
            next(answer.iter_lines())
        until(lambda: "steerlm_running 0.0" in client.get("/metrics").text)
        done = int(
            float(next(x for x in client.get("/metrics").text.splitlines() if x.startswith("steerlm_generated_tokens_total")).split()[1])
        )
        assert done >= 1


def test_malformed_requests_get_no_5xx(steer_server, value_server):
    for server in (steer_server, value_server):
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json").include(path_regex="^/v1/", method="POST")
        for operation in schema.get_all_operations():
            cases = operation.ok().as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)

            @given(case=cases)
            @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None)
            def attack(case):
                assert case.call(timeout=60).status_code < 500

            attack()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(
    [
        "tokens_to_generate",
        "all_probs",
        "temperature",
        "add_BOS",
        "greedy",
        "top_k",
        "top_p",
        "repetition_penalty",
        "end_strings",
        "compute_logprob",
        "random_seed",
    ]
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(sentences=st.just(["Once"]) | JSON, options=st.dictionaries(KEYS, JSON | st.integers(0, 9) | st.floats(0, 2), max_size=4))
def test_nothing_breaks_generate(steer_server, sentences, options):
    import json

    answer = httpx.put(f"{steer_server.url}/generate", content=json.dumps({"sentences": sentences, **options}), timeout=60)
    assert answer.status_code in (200, 400)
    answer.json()


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
        [sys.executable, "examples/megatron_gpt_eval.py", *flags], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == code
    assert message in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1
