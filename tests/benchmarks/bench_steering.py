"""What strength and the best of several cost: one client's answers with and without them, the value model in the same process."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import torch

from nemo_steerlm.core.attributes import preset
from nemo_steerlm.data.packages import local_path
from tests.benchmarks.bench_serving import QUESTIONS, TOKENS
from tests.inputs import SMOLLM2
from tests.serving.servers import running
from tests.serving.tiny_models import model_folder

ASKED = {"attributes": {"helpfulness": 4, "verbosity": 1}, "read": False}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "read back": {"read": True},
    "strength 2": {"guidance_scale": 2.0},
    **{f"best of {n}": {"best_of": n} for n in (2, 4, 8)},
}
ROUNDS = 5


def seconds(client: httpx.Client, question: str, more: dict[str, Any]) -> float:
    """Of one answer of ``TOKENS`` tokens."""
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": TOKENS, "min_tokens": TOKENS, **ASKED, **more}
    began = time.perf_counter()
    client.post("/v1/chat/completions", json=body).raise_for_status()
    return time.perf_counter() - began


def main() -> None:
    """Print the median seconds of an answer each way, in turn, and how many times plain ones they are."""
    with tempfile.TemporaryDirectory() as scratch:
        base, schema = local_path(SMOLLM2), preset("helpsteer")
        steer, value = (model_folder(base, Path(scratch) / kind, kind=kind, schema=schema, noise=0.02) for kind in ("steer", "value"))
        options = ("--reader", str(value), "--no-page", "--threads", str(torch.get_num_threads()))
        with running(steer, *options) as server, httpx.Client(base_url=server.url, timeout=900) as client:
            took: dict[str, list[float]] = {name: [] for name in WAYS}
            for question in itertools.islice(itertools.cycle(QUESTIONS), ROUNDS):
                for name, more in WAYS.items():
                    took[name].append(seconds(client, question, more))
    plain = statistics.median(took["plain"])
    print(f"{'an answer':12} {'median s':>9} {'x plain':>8}")
    for name, found in took.items():
        print(f"{name:12} {statistics.median(found):9.2f} {statistics.median(found) / plain:8.2f}")


if __name__ == "__main__":
    main()
