"""A served model under 1, 4, 16 and 64 clients at once, and the annotator against upstream's protocol: real processes over HTTP.

The baselines are what upstream's server is: requests answered one after another behind a lock (transformers' ``generate`` here), and for
labels thirteen one-token ``PUT /generate`` requests a turn, one at a time, of the same turns of the same records, for which both protocols'
values are compared. A second baseline of generation is ``generate`` with all clients' prompts as one batch, as somebody can do who has all
prompts beforehand; then what others would serve the model with, where it can be installed.
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import httpx
import torch
from transformers import AutoModelForCausalLM

from nemo_steerlm.client.labelling import UPSTREAM_SAMPLING, LabelFormat, Labelling
from nemo_steerlm.client.retry import RequestFailed
from nemo_steerlm.core.attributes import preset
from nemo_steerlm.core.conversation import ASSISTANT, Conversation, Turn
from nemo_steerlm.core.labels import split
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.template import text_of
from nemo_steerlm.core.tokenization import load_tokenizer
from nemo_steerlm.data.packages import local_path
from tests.benchmarks.bench_scoring import threads
from tests.benchmarks.other_servers import OTHERS, openvino_genai, skipping
from tests.inputs import SMOLLM2, STORIES
from tests.serving.servers import running
from tests.serving.tiny_models import model_folder, teach_labels

CLIENTS = (1, 4, 16, 64)
TOKENS = 32
"""Generated for every request, whatever the model would have ended with."""
QUESTIONS = ("Where did techno music start?", "Name three uses of a paper clip.", "Why is the sky blue?", "Write a line about rain.")


PROMPTS = [f"<extra_id_1>User\n{question}\n<extra_id_1>Assistant\n" for question in QUESTIONS]


class Told(NamedTuple):
    """One streamed answer: seconds to its first token and to its end."""

    first: float
    last: float


async def ask(client: httpx.AsyncClient, number: int, more: Mapping[str, object]) -> Told:
    """Stream one answer of ``TOKENS`` tokens. ``more`` is what this server has to be told beside."""
    body = {
        "prompt": PROMPTS[number % len(PROMPTS)],
        "max_tokens": TOKENS,
        "min_tokens": TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **more,
    }
    began, first, usage, last = time.perf_counter(), 0.0, {}, ""
    async with client.stream("POST", "/v1/completions", json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                first = first or time.perf_counter() - began
                usage = json.loads(line[6:]).get("usage") or usage
                last = line
    assert usage.get("completion_tokens") == TOKENS, f"HTTP {response.status_code}, {usage or last}: not what was asked for"
    return Told(first, time.perf_counter() - began)


async def load(url: str, clients: int, each: int, more: Mapping[str, object]) -> tuple[list[Told], float]:
    """``clients`` at once, each with ``each`` requests after one another."""

    async def one(client: httpx.AsyncClient, number: int) -> list[Told]:
        return [await ask(client, number + i, more) for i in range(each)]

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=900, limits=limits) as client:
        await ask(client, 0, more)
        began = time.perf_counter()
        told = await asyncio.gather(*(one(client, i) for i in range(clients)))
        return [t for answers in told for t in answers], time.perf_counter() - began


def one_after_another(folder: Path, requests: int) -> float:
    """Tokens/s of transformers' ``generate``, a request at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    tokenizer = load_tokenizer(folder)
    began = 0.0
    for number in range(-1, requests):  # the first warms up
        began = began if number else time.perf_counter()
        ids = torch.tensor([tokenizer.encode(PROMPTS[number % len(PROMPTS)])])
        length = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "pad_token_id": 0}
        model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **length)
    return requests * TOKENS / (time.perf_counter() - began)


def batched(folder: Path, clients: int) -> float:
    """Tokens/s of transformers' ``generate`` with one prompt of each client in one batch, padded on the left."""
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    tokenizer = load_tokenizer(folder)
    prompts = [tokenizer.encode(PROMPTS[number % len(PROMPTS)]) for number in range(clients)]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    rates = []
    for _ in range(2):  # the first warms up
        began = time.perf_counter()
        model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=TOKENS, min_new_tokens=TOKENS, pad_token_id=0)
        rates.append(clients * TOKENS / (time.perf_counter() - began))
    return rates[-1]


def throughput(folder: Path, most: int) -> None:
    """Print tokens/s and time to first token by number of clients, up to ``most``. The questions repeat, so nothing is kept of them."""
    base = one_after_another(folder, 4)
    print(f"one request after another (transformers' generate): {base:.1f} tokens/s")
    print(
        f"{'clients':>8} {'requests':>9} {'tokens/s':>9} {'x baseline':>11} {'x one batch':>12} {'first token, median s':>22} {'p95 s':>7}"
    )
    numbers = [clients for clients in CLIENTS if clients <= most]
    batches = {clients: batched(folder, clients) for clients in numbers}
    rates = {}
    with running(folder, "--no-page", "--no-prefix-cache", "--max-rows", "64", "--threads", str(torch.get_num_threads())) as server:
        for clients in numbers:
            rate, firsts = measured(server.url, clients)
            p95 = firsts[int(0.95 * (len(firsts) - 1))]
            ratios = f"{rate / base:11.1f} {rate / batches[clients]:12.2f}"
            print(f"{clients:8} {len(firsts):9} {rate:9.1f} {ratios} {statistics.median(firsts):22.2f} {p95:7.2f}", flush=True)
            rates[clients] = rate
    others(folder, {"this server": rates, "transformers' generate, one batch": batches})


def measured(url: str, clients: int, more: Mapping[str, object] | None = None) -> tuple[float, list[float]]:
    """Tokens/s of a server under so many clients, and the seconds to each first token, sorted."""
    told, seconds = asyncio.run(load(url, clients, 4 if clients < 16 else 1, more or {}))
    return len(told) * TOKENS / seconds, sorted(t.first for t in told)


def others(folder: Path, known: dict[str, dict[int, float]]) -> None:
    """Print tokens/s of what others would serve the model with, beside what is ``known`` of the same numbers of clients."""
    numbers = list(next(iter(known.values())))
    print(f"\n{'tokens/s by number of clients':36}" + "".join(f"{number:>9}" for number in numbers))

    def row(name: str, rates: Mapping[int, float]) -> None:
        print(f"{name:36}" + "".join(f"{rates[number]:9.1f}" for number in numbers), flush=True)

    for name, rates in known.items():
        row(name, rates)
    for other in OTHERS:
        with skipping(other.name), other.serving(folder, max(numbers)) as url:
            row(other.name, {number: measured(url, number, other.more)[0] for number in numbers})
    with skipping(batch := "OpenVINO GenAI, one batch"):
        row(batch, openvino_genai(folder, PROMPTS, numbers, TOKENS))


def turns(folder: Path, count: int) -> None:
    """Print how long a chat's turns take to begin where what was read before is kept, and where it is not."""
    print(f"{'turn of a chat':>30} {'prompt tokens':>14} {'first token, s':>15} {'without a prefix cache':>23}")
    seconds: list[list[float]] = []
    lengths: list[int] = []
    for options in ((), ("--no-prefix-cache",)):
        seconds.append([])
        lengths.clear()
        messages: list[dict[str, str]] = []
        with running(folder, "--no-page", "--threads", str(torch.get_num_threads()), *options) as server, server.client() as client:
            warm = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
            client.post("/v1/chat/completions", json=warm).raise_for_status()
            for number in range(count):
                messages.append({"role": "user", "content": f"{number}. " + " ".join(QUESTIONS)})
                body = {"messages": messages, "temperature": 0, "max_tokens": 1}
                began = time.perf_counter()
                client.post("/v1/chat/completions", json=body).raise_for_status()
                seconds[-1].append(time.perf_counter() - began)
                answer = client.post("/v1/chat/completions", json=body | {"max_tokens": TOKENS}).raise_for_status().json()
                lengths.append(answer["usage"]["prompt_tokens"])
                messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
    for number, (length, kept, without) in enumerate(zip(lengths, *seconds, strict=True), 1):
        print(f"{number:30} {length:14} {kept:15.3f} {without:23.3f}", flush=True)


def memory(folder: Path, rows: int, tokens: int) -> None:
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


class Compared(NamedTuple):
    """Values that upstream's protocol found beside ours."""

    alike: int
    found: int
    none: int
    """Its one token was no value of the field: a language of two tokens, or a model that was not taught. Ours stands in its place then."""


def upstream(url: str, works: Sequence[tuple[Conversation, list[str]]], form: LabelFormat) -> Compared:
    """Label conversations by upstream's protocol, value after value, and compare with the labels that they are given with."""
    alike = found = none = 0
    with httpx.Client(base_url=url, timeout=900) as client:
        for conversation, labels in works:
            item = Labelling(conversation, form)
            mine = [field for label in labels for field in split(label)]
            failed = set()
            for number, field in enumerate(mine):
                prompt = item.prompt()
                body = {"sentences": [prompt], **UPSTREAM_SAMPLING}
                (sentence,) = client.put("/generate", json=body).raise_for_status().json()["sentences"]
                try:
                    item.take(sentence, prompt)
                except RequestFailed:
                    failed.add(number)
                    item.take(f"{prompt}{field.text}", prompt)
            theirs = [field for turn in item.targets for field in split(item.labels[turn].label)]
            same = [a.text == b.text for n, (a, b) in enumerate(zip(mine, theirs, strict=True)) if n not in failed]
            alike, found, none = alike + sum(same), found + len(same), none + len(failed)
    return Compared(alike, found, none)


class Work(NamedTuple):
    """Conversations to label."""

    name: str
    conversations: list[Conversation]


def annotation(folder: Path, works: Iterable[Work]) -> None:
    """Print conversations/s of ``steerlm annotate`` and of upstream's protocol, of the same turns of all conversations.

    Each has a server of its own, which has answered once. Upstream's keeps nothing of what it has read, as NeMo's.
    """
    info = ModelInfo.load(folder)
    form = LabelFormat(schema=info.attributes, template=info.template(load_tokenizer(folder)))
    print(f"{'work':34} {'annotate, conversations/s':>26} {'upstream protocol':>18} {'faster':>7} {'values alike':>15} {'none':>5}")
    options = ("--no-page", "--threads", str(torch.get_num_threads()))
    for name, found in works:
        with tempfile.TemporaryDirectory() as scratch:
            given, labelled = Path(scratch) / "in.jsonl", Path(scratch) / "out.jsonl"
            given.write_text("".join(json.dumps(record(c)) + "\n" for c in found))
            with running(folder, *options) as server:
                command = [sys.executable, "-m", "nemo_steerlm.cli.main", "annotate", "--server", server.url, "--progress", "none"]
                httpx.post(f"{server.url}/v1/attributes", json={"conversations": [record(found[0])]}, timeout=900).raise_for_status()
                began = time.perf_counter()
                subprocess.run([*command, "--turns", "unmasked", str(given), str(labelled)], check=True, stdout=subprocess.DEVNULL)
                ours = len(found) / (time.perf_counter() - began)
            turns = [json.loads(line)["conversations"] for line in labelled.read_text().splitlines()]
            labels = [[turn["label"] for turn in one if turn["from"] != c.mask] for one, c in zip(turns, found, strict=True)]
            both = list(zip(found, labels, strict=True))
            with running(folder, "--no-prefix-cache", *options) as server:
                upstream(server.url, both[:1], form)
                began = time.perf_counter()
                told = upstream(server.url, both, form)
                rate = len(found) / (time.perf_counter() - began)
        values = f"{told.alike} of {told.found}"
        print(f"{f'{name}, {len(found)} records':34} {ours:26.2f} {rate:18.3f} {ours / rate:7.1f} {values:>15} {told.none:5}", flush=True)


def real_threads(folder: Path, most: int) -> Iterator[Work]:
    """OASST conversations of two and of four turns, ``most`` at most."""
    tokenizer = load_tokenizer(folder)
    template = ModelInfo.load(folder).template(tokenizer)
    measure = lambda c, turn: tokenizer.encode(text_of(template.label_prompt(c, turn)))  # noqa: E731
    works = ((2, range(150, 400), 32), (4, range(300, 700), 16))
    # The tiny model has no room for four turns and their labels.
    for length, tokens, count in works[: 1 if most < 16 else 2]:
        yield Work(f"{length} turns", threads(measure, length, tokens, min(count, most)))


def read_stages(work: Path, count: int = 256) -> Iterator[Work]:
    """The first of what the value model read in a pipeline that has run: conversations to label, and the SteerLM model's answers."""
    labelled = work / "prepare" / "annotate_train.jsonl"
    with labelled.open() as file:
        asked = [Conversation.from_record(json.loads(line)) for line in itertools.islice(file, count)]
    yield Work(f"{work.name}: annotate", asked)
    with (work / "evaluate" / "samples.jsonl").open() as file:
        samples = [json.loads(line) for line in itertools.islice(file, count)]
    like = asked[0]
    answered = [(Turn(speaker=like.mask, text=s["prompt"]), Turn(speaker=ASSISTANT, text=s["answer"])) for s in samples]
    yield Work(f"{work.name}: evaluate", [Conversation(turns=turns, system=like.system, mask=like.mask) for turns in answered])


def record(conversation: Conversation) -> dict[str, object]:
    """A conversation as a line of a record file."""
    turns = [{"value": turn.text, "from": turn.speaker} for turn in conversation.turns]
    return {"conversations": turns, "system": conversation.system, "mask": conversation.mask, "type": "VALUE_TO_TEXT"}


def main(parts: str = "all", work: Path | None = None, *, small: bool = False) -> None:
    """Print the tables."""
    if work:
        annotation(work / "train-value" / "hf", read_stages(work))
        return
    source = STORIES if small else local_path(SMOLLM2)
    with tempfile.TemporaryDirectory() as scratch:
        steer = model_folder(source, Path(scratch) / "steer", kind="steer")
        if parts in ("all", "throughput"):
            throughput(steer, 4 if small else 64)
        if parts in ("all", "turns"):
            turns(steer, 2 if small else 6)
        if parts in ("all", "memory"):
            memory(model_folder(STORIES, Path(scratch) / "long", kind="steer"), *((4, 500) if small else (32, 8000)))
        if parts in ("all", "annotation"):
            folder = model_folder(source, Path(scratch) / "value", kind="value", schema=preset("oasst"), noise=0.02)
            teach_labels(folder, 30, 3e-3 if small else 1e-4)
            annotation(folder, real_threads(folder, 2 if small else 32))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="all", choices=("all", "throughput", "turns", "memory", "annotation"))
    parser.add_argument("--work", type=Path, help="only what was read in this work directory, such as runs/quickstart")
    parser.add_argument("--small", action="store_true", help="a tiny model and few requests, to see that all of it runs")
    main(**vars(parser.parse_args()))
