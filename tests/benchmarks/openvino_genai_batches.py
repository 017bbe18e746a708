"""Run in an environment with openvino-genai and optimum-intel: tokens/s of batches of prompts.

Work comes on stdin, rates go to stdout, as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import openvino_genai


def main() -> None:
    work = json.load(sys.stdin)
    tokens, rates = work["tokens"], {}
    with tempfile.TemporaryDirectory() as scratch:
        cli = Path(sys.executable).with_name("optimum-cli")
        export = [
            str(cli),
            "export",
            "openvino",
            "--model",
            work["folder"],
            "--task",
            "text-generation-with-past",
            "--weight-format",
            "fp32",
        ]
        subprocess.run([*export, scratch], check=True, stdout=subprocess.DEVNULL)
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size, scheduler.enable_prefix_caching = 2, False
        scheduler.max_num_seqs = max(work["clients"])
        exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "INFERENCE_NUM_THREADS": work["threads"]}
        pipeline = openvino_genai.ContinuousBatchingPipeline(scratch, scheduler, "CPU", exact)
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.apply_chat_template = tokens, True, False
        for clients in work["clients"]:
            prompts = [work["prompts"][i % len(work["prompts"])] for i in range(clients)]
            for _ in range(2):  # the first warms up
                began = time.perf_counter()
                pipeline.generate(prompts, [config] * clients)
                rates[clients] = clients * tokens / (time.perf_counter() - began)
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
