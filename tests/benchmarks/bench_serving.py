"""A served model under 1, 4, 16 and 64 clients at once, and the annotator against upstream's protocol: real processes over HTTP.

The baselines are what upstream's server is: requests answered one after another behind a lock (transformers' ``generate`` here), and for
labels thirteen one-token ``PUT /generate`` requests a turn, one at a time, of the same turns. A second baseline of generation is
``generate`` with all clients' prompts as one batch, as somebody can do who has all prompts beforehand.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import torch
from transformers import AutoModelForCausalLM

from nemo_steerlm.client.labelling import UPSTREAM_SAMPLING
from nemo_steerlm.core.attributes import preset
from nemo_steerlm.core.conversation import ASSISTANT, Conversation, Turn
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.template import text_of
from nemo_steerlm.core.tokenization import load_tokenizer
from nemo_steerlm.data.packages import local_path
from tests.benchmarks.bench_scoring import threads
from tests.inputs import SMOLLM2, STORIES
from tests.serving.servers import running
from tests.serving.tiny_models import model_folder

CLIENTS = (1, 4, 16, 64)
TOKENS = 32
"""Generated for every request, whatever the model would have ended with."""
QUESTIONS = ("Where did techno music start?", "Name three uses of a paper clip.", "Why is the sky blue?", "Write a line about rain.")


class Told(NamedTuple):
    """One streamed answer: seconds to its first token and to its end."""

    first: float
    last: float


async def ask(client: httpx.AsyncClient, number: int) -> Told:
    """Stream one answer of ``TOKENS`` tokens."""
    body = {
        "prompt": f"<extra_id_1>User\n{QUESTIONS[number % len(QUESTIONS)]}\n<extra_id_1>Assistant\n",
        "max_tokens": TOKENS,
        "min_tokens": TOKENS,
        "temperature": 0,
        "logprobs": 0,
        "stream": True,
    }
    began, first = time.perf_counter(), 0.0
    async with client.stream("POST", "/v1/completions", json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {") and not first:
                first = time.perf_counter() - began
    return Told(first, time.perf_counter() - began)


async def load(url: str, clients: int, each: int) -> tuple[list[Told], float]:
    """``clients`` at once, each with ``each`` requests after one another."""

    async def one(client: httpx.AsyncClient, number: int) -> list[Told]:
        return [await ask(client, number + i) for i in range(each)]

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=900, limits=limits) as client:
        await ask(client, 0)
        began = time.perf_counter()
        told = await asyncio.gather(*(one(client, i) for i in range(clients)))
        return [t for answers in told for t in answers], time.perf_counter() - began


def one_after_another(folder: Path, requests: int) -> float:
    """Tokens/s of transformers' ``generate``, a request at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    tokenizer = load_tokenizer(folder)
    began = time.perf_counter()
    for number in range(requests):
        ids = torch.tensor([tokenizer.encode(f"<extra_id_1>User\n{QUESTIONS[number % 4]}\n<extra_id_1>Assistant\n")])
        length = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "pad_token_id": 0}
        model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **length)
    return requests * TOKENS / (time.perf_counter() - began)


def batched(folder: Path, clients: int) -> float:
    """Tokens/s of transformers' ``generate`` with one prompt of each client in one batch, padded on the left."""
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    tokenizer = load_tokenizer(folder)
    prompts = [tokenizer.encode(f"<extra_id_1>User\n{QUESTIONS[number % 4]}\n<extra_id_1>Assistant\n") for number in range(clients)]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    rates = []
    for _ in range(2):  # the first warms up
        began = time.perf_counter()
        model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=TOKENS, min_new_tokens=TOKENS, pad_token_id=0)
        rates.append(clients * TOKENS / (time.perf_counter() - began))
    return rates[-1]


def throughput(folder: Path) -> None:
    """Print tokens/s and time to first token by number of clients."""
    base = one_after_another(folder, 4)
    print(f"one request after another (transformers' generate): {base:.1f} tokens/s")
    print(
        f"{'clients':>8} {'requests':>9} {'tokens/s':>9} {'x baseline':>11} {'x one batch':>12} {'first token, median s':>22} {'p95 s':>7}"
    )
    batches = {clients: batched(folder, clients) for clients in CLIENTS}
    with running(folder, "--max-rows", "64", "--threads", str(torch.get_num_threads())) as server:
        for clients in CLIENTS:
            told, seconds = asyncio.run(load(server.url, clients, 4 if clients < 16 else 1))
            firsts = sorted(t.first for t in told)
            rate = len(told) * TOKENS / seconds
            p95 = firsts[int(0.95 * (len(firsts) - 1))]
            ratios = f"{rate / base:11.1f} {rate / batches[clients]:12.2f}"
            print(f"{clients:8} {len(told):9} {rate:9.1f} {ratios} {statistics.median(firsts):22.2f} {p95:7.2f}", flush=True)


def memory(folder: Path, rows: int = 32, tokens: int = 8000) -> None:
    """Print the most memory that a server takes while it reads ``rows`` prompts of ``tokens`` tokens that come at once."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2 * tokens}))

    async def ask_all(url: str) -> None:
        body = {"max_tokens": 4, "min_tokens": 4, "temperature": 0}
        async with httpx.AsyncClient(base_url=url, timeout=None) as client:
            prompts = [[5 + (row * 37 + i * i) % 400 for i in range(tokens)] for row in range(rows)]
            answers = await asyncio.gather(*(client.post("/v1/completions", json=body | {"prompt": prompt}) for prompt in prompts))
        assert all(answer.json()["usage"]["completion_tokens"] == 4 for answer in answers)

    heads = config["num_key_value_heads"] * config["hidden_size"] // config["num_attention_heads"]
    kept = 2 * 4 * config["num_hidden_layers"] * heads
    print(f"{rows} prompts of {tokens} tokens at once, fp32: keys and values {rows * tokens * kept >> 20} MiB, one mask of them all "
          f"{rows * tokens * tokens * 4 >> 20} MiB")  # fmt: skip
    print(f"{'cache':>30} {'peak, MiB':>10} {'above the idle server':>22} {'seconds':>8}")
    for name, options in (("half of the free memory", ()), (f"{4 * tokens} tokens", ("--cache-tokens", str(4 * tokens)))):
        with running(folder, "--no-page", "--threads", str(torch.get_num_threads()), *options) as server:
            idle = _peak(server.process.pid)
            began = time.perf_counter()
            asyncio.run(ask_all(server.url))
            seconds, peak = time.perf_counter() - began, _peak(server.process.pid)
        print(f"{name:>30} {peak:10} {peak - idle:22} {seconds:8.1f}", flush=True)


def _peak(process: int) -> int:
    """MiB that a process had at most."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM:"))


def upstream(url: str, conversations: list[Conversation], folder: Path) -> float:
    """Seconds of upstream's annotator for these conversations. What it reads is thrown away: this model is not trained to give values."""
    info = ModelInfo.load(folder)
    template = info.template(load_tokenizer(folder))
    fields = [*info.attributes.names, *(["lang"] if info.attributes.languages else [])]
    began = time.perf_counter()
    with httpx.Client(base_url=url, timeout=900) as client:
        for conversation in conversations:
            for turn in (i for i, one in enumerate(conversation.turns) if one.speaker != conversation.mask):
                start = text_of(template.label_prompt(conversation, turn))
                for k in range(len(fields)):
                    label = ",".join([*(f"{name}:0" for name in fields[:k]), f"{fields[k]}:"])
                    client.put("/generate", json={"sentences": [start + label], **UPSTREAM_SAMPLING}).raise_for_status()
    return time.perf_counter() - began


class Work(NamedTuple):
    """Conversations to label, and how many of them upstream's protocol is timed with."""

    name: str
    conversations: list[Conversation]
    few: int


def annotation(folder: Path, works: Iterable[Work]) -> None:
    """Print conversations/s of ``steerlm annotate`` and of upstream's protocol, on the same server."""
    print(f"{'work':34} {'annotate, conversations/s':>26} {'upstream protocol':>18} {'faster':>7}")
    for name, found, few in works:
        with tempfile.TemporaryDirectory() as scratch, running(folder, "--threads", str(torch.get_num_threads())) as server:
            given = Path(scratch) / "in.jsonl"
            given.write_text("".join(json.dumps(record(c)) + "\n" for c in found))
            command = [sys.executable, "-m", "nemo_steerlm.cli.main", "annotate", "--server", server.url, "--progress", "none"]
            upstream(server.url, found[:1], folder)  # warm for both
            began = time.perf_counter()
            subprocess.run([*command, str(given), str(Path(scratch) / "out.jsonl")], check=True, stdout=subprocess.DEVNULL)
            ours = len(found) / (time.perf_counter() - began)
            theirs = few / upstream(server.url, found[:few], folder)
        print(f"{f'{name}, {len(found)} records':34} {ours:26.2f} {theirs:18.3f} {ours / theirs:7.1f}", flush=True)


def real_threads(folder: Path) -> Iterator[Work]:
    """OASST conversations of two and of four turns."""
    tokenizer = load_tokenizer(folder)
    template = ModelInfo.load(folder).template(tokenizer)
    measure = lambda c, turn: tokenizer.encode(text_of(template.label_prompt(c, turn)))  # noqa: E731
    for turns, tokens, count, few in ((2, range(150, 400), 32, 2), (4, range(300, 700), 16, 1)):
        yield Work(f"{turns} turns", threads(measure, turns, tokens, count), few)


def read_stages(work: Path, count: int = 256) -> Iterator[Work]:
    """The first of what the value model read in a pipeline that has run: conversations to label, and the SteerLM model's answers."""
    labelled = work / "prepare" / "annotate_train.jsonl"
    with labelled.open() as file:
        asked = [Conversation.from_record(json.loads(line)) for line in itertools.islice(file, count)]
    yield Work(f"{work.name}: annotate", asked, 16)
    with (work / "evaluate" / "samples.jsonl").open() as file:
        samples = [json.loads(line) for line in itertools.islice(file, count)]
    like = asked[0]
    answered = [(Turn(speaker=like.mask, text=s["prompt"]), Turn(speaker=ASSISTANT, text=s["answer"])) for s in samples]
    yield Work(f"{work.name}: evaluate", [Conversation(turns=turns, system=like.system, mask=like.mask) for turns in answered], 16)


def record(conversation: Conversation) -> dict[str, object]:
    """A conversation as a line of a record file."""
    turns = [{"value": turn.text, "from": turn.speaker} for turn in conversation.turns]
    return {"conversations": turns, "system": conversation.system, "mask": conversation.mask, "type": "VALUE_TO_TEXT"}


def main(parts: str = "all", work: Path | None = None) -> None:
    """Print the tables."""
    if work:
        annotation(work / "train-value" / "hf", read_stages(work))
        return
    with tempfile.TemporaryDirectory() as scratch:
        if parts in ("all", "throughput"):
            throughput(model_folder(local_path(SMOLLM2), Path(scratch) / "steer", kind="steer"))
        if parts in ("all", "memory"):
            memory(model_folder(STORIES, Path(scratch) / "long", kind="steer"))
        if parts in ("all", "annotation"):
            folder = model_folder(local_path(SMOLLM2), Path(scratch) / "value", kind="value", schema=preset("oasst"), noise=0.02)
            annotation(folder, real_threads(folder))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="all", choices=("all", "throughput", "memory", "annotation"))
    parser.add_argument("--work", type=Path, help="only what was read in this work directory, such as runs/quickstart")
    main(**vars(parser.parse_args()))
