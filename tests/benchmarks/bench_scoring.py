"""Attribute scoring against one plain prefill of the same text, and against upstream's protocol, on SmolLM2-135M and real threads.

CPU seconds of one thread are measured, in turns, so that other work on the machine changes little. The model is not trained to label: its
labels vary as they happen to, and the first round is one in which nothing can be guessed yet. Nothing is kept of what was read before: the
plain forwards and upstream's server keep nothing either.

Then a server's memory over many records (one layer of stories260K: what could grow grows as well).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import torch
from transformers import AutoModelForCausalLM

from nemo_steerlm.core.attributes import preset
from nemo_steerlm.core.conversation import Conversation, Turn
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.template import text_of
from nemo_steerlm.core.tokenization import load_tokenizer
from nemo_steerlm.data.packages import local_path
from nemo_steerlm.inference.engine import GenerationRequest, Sampling, ScoreRequest
from nemo_steerlm.inference.loading import load_engine
from nemo_steerlm.inference.registry import EngineOptions
from tests.inputs import OASST, SMOLLM2, STORIES
from tests.serving.servers import running
from tests.serving.tiny_models import model_folder


class Bench:
    """One model, three ways to get labels out of it."""

    def __init__(self, folder: Path, engine: str) -> None:
        self.engine = load_engine(folder, EngineOptions(max_rows=64, device="cpu", prefix_cache=False), engine=engine)
        self.plain_model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
        self.template = self.engine.info.template(self.engine.tokenizer)

    def ids(self, conversation: Conversation, turn: int) -> list[int]:
        """The prompt for one turn's label."""
        return self.engine.tokenizer.encode(text_of(self.template.label_prompt(conversation, turn)))

    @torch.inference_mode()
    def plain(self, conversations: list[Conversation]) -> None:
        """One padded forward of transformers, last logits only."""
        rows = [self.ids(c, len(c.turns) - 1) for c in conversations]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        self.plain_model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), logits_to_keep=1, use_cache=True)

    def score(self, conversations: list[Conversation]) -> None:
        """This project's scoring of every assistant turn."""
        self.engine.score([ScoreRequest(conversation=c, turns=tuple(range(1, len(c.turns), 2))) for c in conversations])

    def forget(self) -> None:
        """Guess nothing, as a server that has read nothing yet."""
        for habits in self.engine._scorer._habits:
            habits.clear()

    def upstream(self, conversation: Conversation) -> None:
        """What upstream's protocol asks for of the same turns: a token for each of 12 attributes and the language, with the whole text."""
        for turn in range(1, len(conversation.turns), 2):
            prompt = self.ids(conversation, turn)
            for slot in self.engine._scorer.plan.slots:
                prompt += slot.forced
                self.engine.add(0, GenerationRequest(prompt=tuple(prompt), sampling=Sampling(greedy=True)))
                self.engine.step()
                self.engine.remove(0)
                prompt += next(iter(slot.values.values()))


def threads(ids: Callable[[Conversation, int], list[int]], turns: int, tokens: range, count: int) -> list[Conversation]:
    """Real OASST threads of ``turns`` turns and so many tokens; ``ids`` gives the prompt for a turn's label."""

    def paths(node: dict[str, Any], above: tuple[Turn, ...] = ()) -> Iterator[tuple[Turn, ...]]:
        here = (*above, Turn(speaker="User" if node["role"] == "prompter" else "Assistant", text=node["text"]))
        if len(here) == turns:
            yield here
        for reply in node["replies"]:
            yield from paths(reply, here)

    found = []
    with OASST.open(encoding="utf-8") as file:
        for line in file:
            path = next(paths(json.loads(line)["prompt"]), None)
            if path and len(ids(Conversation(turns=path), turns - 1)) in tokens:
                found.append(Conversation(turns=path))
    return found[:count]


def seconds(work: Callable[[], None]) -> float:
    """CPU time of ``work``."""
    started = time.process_time()
    work()
    return time.process_time() - started


CASES = {
    "2 turns, batch 1": (2, range(250, 350), 1),
    "2 turns, batch 4": (2, range(250, 350), 4),
    "2 turns, batch 16": (2, range(250, 350), 16),
    "4 turns, batch 4": (4, range(350, 700), 4),
    "4 turns, batch 16": (4, range(350, 700), 16),
}
"""Turns of each conversation, its tokens, and how many are scored together."""


def speed(engine: str, cases: Sequence[str], rounds: int, *, upstream: bool) -> None:
    """Print the table of costs: medians of ``rounds``, the ratio's too."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(model_folder(local_path(SMOLLM2), Path(folder), kind="value", schema=preset("oasst")), engine)
    print(f"{'work, ' + engine:36} {'plain s':>8} {'score s':>8} {'ratio':>6} {'upstream s':>11} {'faster':>7}")
    for name in cases:
        turns, tokens, count = CASES[name]
        work = threads(bench.ids, turns, tokens, count)
        for attempt in ("cold", "warm"):
            took = []
            for _ in range(rounds):
                if attempt == "cold":
                    bench.forget()
                took.append((seconds(lambda work=work: bench.plain(work)), seconds(lambda work=work: bench.score(work))))
            plain, score = (statistics.median(both) for both in zip(*took, strict=True))
            ratio = statistics.median(own / other for other, own in took)
            tail = ""
            if upstream and attempt == "warm":
                # Upstream answers one at a time; one conversation is timed and stands for the batch.
                all_of_them = seconds(lambda work=work: bench.upstream(work[0])) * len(work)
                tail = f"{all_of_them:11.1f} {all_of_them / score:7.1f}"
            print(f"{name + ', ' + attempt:36} {plain:8.2f} {score:8.2f} {ratio:6.2f} {tail}", flush=True)


def memory(records: int) -> None:
    """Print a server's resident memory after 1,000, 10,000, … records, sent 256 at a time."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(STORIES, Path(scratch), kind="value", layers=1)
        tokenizer = load_tokenizer(folder)
        template = ModelInfo.load(folder).template(tokenizer)
        found = threads(lambda c, turn: tokenizer.encode(text_of(template.label_prompt(c, turn))), 2, range(100, 300), 64)
        some = [
            {"system": c.system, "mask": c.mask, "conversations": [{"from": t.speaker, "value": t.text} for t in c.turns]} for c in found
        ]
        print(f"{'records':>8} {'resident MB':>12} {'records/s':>10}")
        with running(folder, "--max-rows", "64", "--no-page") as server, httpx.Client(base_url=server.url, timeout=600) as client:
            done, began, mark = 0, time.perf_counter(), 1000
            while mark <= records:
                while done < mark:
                    batch = [some[i % len(some)] for i in range(done, min(done + 256, mark))]
                    client.post("/v1/attributes", json={"conversations": batch}).raise_for_status()
                    done += len(batch)
                status = Path(f"/proc/{server.process.pid}/status").read_text()
                resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
                print(f"{done:8} {resident / 1024:12.1f} {done / (time.perf_counter() - began):10.0f}", flush=True)
                mark *= 10


def main(
    *,
    parts: str = "all",
    engine: str = "embedded",
    cases: Sequence[str] = tuple(CASES),
    rounds: int = 1,
    upstream: bool = True,
    records: int = 100_000,
) -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    if parts in ("all", "speed"):
        speed(engine, cases, rounds, upstream=upstream)
    if parts in ("all", "memory"):
        memory(records)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="all", choices=("all", "speed", "memory"))
    parser.add_argument("--engine", default="embedded", choices=("embedded", "openvino"))
    parser.add_argument("--cases", nargs="+", default=tuple(CASES), choices=CASES)
    parser.add_argument("--rounds", type=int, default=1, help="of which the medians are printed")
    parser.add_argument("--no-upstream", action="store_false", dest="upstream", help="without upstream's protocol, which takes longest")
    parser.add_argument("--records", type=int, default=100_000)
    main(**vars(parser.parse_args()))
