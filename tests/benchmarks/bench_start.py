"""What a training's start costs each of a node's processes once the records are tokenized: seconds, and memory that is its own.

Eight processes map the same files at the same time, draw the first batches of an epoch, and say what the kernel says of them. The files are
written from a few tokenized records over and over, by the code that writes them else; how fast records are tokenized is printed beside.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nemo_steerlm.core.errors import Where
from nemo_steerlm.core.template import Template
from nemo_steerlm.core.tokenization import load_tokenizer
from nemo_steerlm.training import token_files
from nemo_steerlm.training.dataset import tokenize
from tests.inputs import STORIES
from tests.training.records import record

LENGTH = 512
RANK = """
import json, sys, time
from pathlib import Path
import numpy as np
from nemo_steerlm.core.template import Template
from nemo_steerlm.core.tokenization import load_tokenizer
from nemo_steerlm.training import token_files
from nemo_steerlm.training.batches import Collator, Sizes, TrainingOrder

def own():
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in rollup if line.startswith("Private_")) * 1024

file, model, cache, length, rank = sys.argv[1:]
tokenizer = load_tokenizer(model)
before, began = own(), time.perf_counter()
data = token_files.dataset(file, Template.of(tokenizer), tokenizer, int(length), Path(cache))
order = TrainingOrder(len(data), 128, 1234, shuffle=True)
sizes = Sizes(micro_batch_size=2, global_batch_size=128, data_parallel_size=8, data_parallel_rank=int(rank))
for step in range(10):
    Collator(data, pad_id=0).micro_batches(order.batch(step), sizes)
print(json.dumps({"records": len(data), "seconds": time.perf_counter() - began, "own": own() - before}))
"""


def write(folder: Path, records: int) -> Path:
    """A file of ``records`` lines and what was made of it; prints how fast records are tokenized."""
    tokenizer = load_tokenizer(STORIES / "tokenizer.model")
    template = Template.of(tokenizer)
    samples = [record(i, "TEXT_TO_VALUE") for i in range(100)]
    began = time.perf_counter()
    tokenized = [tokenize(sample, Where(file="f", line=1), template, tokenizer, LENGTH) for sample in samples]
    print(f"tokenizing: {len(samples) / (time.perf_counter() - began):.0f} records/s on one core")
    file = folder / "records.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for line in itertools.islice(itertools.cycle([json.dumps(sample) + "\n" for sample in samples]), records):
            out.write(line)
    ready = itertools.cycle(tokenized)
    token_files._tokenize_lines = lambda lines: ([next(ready) for _ in lines], None)
    token_files.WORTH_PROCESSES = sys.maxsize
    token_files.dataset(file, template, tokenizer, LENGTH, folder / "tokens")
    return file


def main(*, records: int = 1_000_000, ranks: int = 8) -> None:
    """Print the slowest and the largest of ``ranks`` processes, and what ten times as many records would take at that rate."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = write(folder, records)
        arguments = [str(file), str(STORIES / "tokenizer.model"), str(folder / "tokens"), str(LENGTH)]
        started = [
            subprocess.Popen([sys.executable, "-c", RANK, *arguments, str(rank)], stdout=subprocess.PIPE, text=True)
            for rank in range(ranks)
        ]
        said = [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]
    seconds, own = max(s["seconds"] for s in said), max(s["own"] for s in said) / 1e6
    print(f"start, {records} records, {ranks} processes at once: at most {seconds:.1f} s and {own:.0f} MB of its own each")
    print(f"start, {10 * records} records, extrapolated: {10 * seconds:.0f} s and {10 * own:.0f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--ranks", type=int, default=8)
    main(**vars(parser.parse_args()))
