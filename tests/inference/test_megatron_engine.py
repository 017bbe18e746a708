"""The Megatron engine over two processes, against the embedded engine on the same weights. Real servers, started as NeMo's users do."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from nemo_steerlm.client.launch import ALL_POSITIONS
from nemo_steerlm.inference.engine import GenerationRequest, Sampling
from nemo_steerlm.inference.huggingface import HuggingFaceEngine
from nemo_steerlm.inference.registry import EngineOptions
from nemo_steerlm.pipeline.engine_spec import MegatronSpec
from tests.inference.test_scoring import requests
from tests.inputs import STORIES
from tests.serving.tiny_models import model_folder, nemo_file, teach_labels

pytestmark = [pytest.mark.megatron, pytest.mark.distributed]

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "examples" / "megatron_gpt_eval.py")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0")
STEERLM = ("-m", "nemo_steerlm.cli.main", "serve")
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")} | {"OMP_NUM_THREADS": "1"}


class Served(NamedTuple):
    process: subprocess.Popen[str]
    client: httpx.Client
    log: Path

    def ranks(self) -> list[int]:
        """Every process under the one that was started."""
        found, new = [], [self.process.pid]
        while new:
            text = "".join(task.read_text() for pid in new for task in Path(f"/proc/{pid}/task").glob("*/children"))
            new = [int(pid) for pid in text.split()]
            found += new
        return found


@contextlib.contextmanager
def serving(model: Path, tensor: int, pipeline: int, log: Path, launcher: tuple[str, ...] = ()) -> Iterator[Served]:
    """A server of ``model`` over two processes; whatever is left of it afterwards is killed."""
    sizes = (f"tensor_model_parallel_size={tensor}", f"pipeline_model_parallel_size={pipeline}", "trainer.devices=2")
    flags = (f"gpt_model_file={model}", "server=True", "port=0", "host=127.0.0.1", "trainer.accelerator=cpu", *sizes)
    command = [sys.executable, *launcher, SCRIPT, *flags]
    if launcher == STEERLM:
        command = [sys.executable, *STEERLM, str(model), "--no-page", *ALL_POSITIONS, *MegatronSpec(pipeline=pipeline).options(2)]
    with log.open("w") as err:
        process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=err, text=True)
    served = None
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log.read_text()[-3000:]
        with httpx.Client(base_url=json.loads(line)["url"], timeout=120) as client:
            served = Served(process, client, log)
            yield served
    finally:
        left = [] if process.poll() is not None or served is None else served.ranks()
        process.kill()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def until(condition, seconds: float = 60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"


def alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A value model of an even number of layers."""
    folder = model_folder(STORIES, tmp_path_factory.mktemp("value"), kind="value", layers=4)
    teach_labels(folder)
    return folder


@pytest.fixture(scope="module")
def value_nemo(folder, tmp_path_factory) -> Path:
    return nemo_file(folder, tmp_path_factory.mktemp("nemo") / "value.nemo")


@pytest.fixture(scope="module")
def embedded(folder) -> HuggingFaceEngine:
    return HuggingFaceEngine(folder, EngineOptions(device="cpu"))


SENTENCES = ["Once upon a time", "The little dog was very happy because", "a", "<extra_id_1>User\nHi", "One day, Tim", "She said"]


def greedy(engine: HuggingFaceEngine, count: int) -> list[tuple[list[int], list[float]]]:
    """Token ids and log-probabilities after each of ``SENTENCES``."""
    for row, sentence in enumerate(SENTENCES):
        ids = tuple(engine.tokenizer.encode(sentence))
        engine.add(row, GenerationRequest(prompt=ids, sampling=Sampling(greedy=True), logprobs=0))
    steps = [engine.step() for _ in range(count)]
    for row in range(len(SENTENCES)):
        engine.remove(row)
    return [([s[row].token for s in steps], [s[row].logprob.logprob for s in steps]) for row in range(len(SENTENCES))]


def most_rows_at_once(metrics: str) -> float:
    """The smallest bucket that has all decoding steps."""
    buckets = re.findall(r'steerlm_generate_batch_rows_bucket\{le="([^"]+)"\} (\S+)', metrics)
    return next(float(limit) for limit, count in buckets if float(count) == float(buckets[-1][1]))


@pytest.mark.parametrize(("tensor", "pipeline", "launcher"), [(2, 1, STEERLM), (1, 2, TORCHRUN)], ids=["tensor-serve", "pipeline-torchrun"])
def test_two_processes_answer_as_the_embedded_engine_and_end_together(value_nemo, embedded, tensor, pipeline, launcher, tmp_path):
    wanted = requests(6)
    records = [
        {
            "system": r.conversation.system,
            "mask": "User",
            "conversations": [{"from": t.speaker, "value": t.text, "label": t.label} for t in r.conversation.turns],
        }
        for r in wanted
    ]
    with serving(value_nemo, tensor, pipeline, tmp_path / "log", launcher) as served, concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(2):  # the second time with guesses
            answer = served.client.post("/v1/attributes", json={"conversations": records})
            assert answer.status_code == 200, answer.text
            for result, turns in zip(answer.json()["results"], embedded.score(wanted), strict=True):
                assert [turn["label"] for turn in result["turns"]] == [turn.label for turn in turns]
                for found, turn in zip(result["turns"], turns, strict=True):
                    for name, attribute in found["attributes"].items():
                        for value, chance in attribute["probabilities"].items():
                            assert math.log(chance) == pytest.approx(math.log(turn.choices[name].probabilities[value]), abs=1e-3)

        def put(sentence: str) -> dict[str, Any]:
            body = {"sentences": [sentence], "tokens_to_generate": 24, "greedy": True, "compute_logprob": True}
            return served.client.put("/generate", json=body).json()

        for sentence, answer, (ids, logprobs) in zip(SENTENCES, pool.map(put, SENTENCES), greedy(embedded, 24), strict=True):
            got = answer["token_ids"][0][len(embedded.tokenizer.encode(sentence)) :]
            assert got
            assert got == ids[: len(got)]
            assert answer["logprob"][0][-len(got) :] == pytest.approx(logprobs[: len(got)], abs=1e-3)
        assert most_rows_at_once(served.client.get("/metrics").text) > 1

        ranks = served.ranks()
        assert len(ranks) == (2 if launcher == TORCHRUN else 1)
        served.process.send_signal(signal.SIGTERM)
        code = served.process.wait(120)
        assert code == 0 or launcher == TORCHRUN, "torchrun tells of its signal by a code of its own"
        until(lambda: not any(map(alive, ranks)))
        log = served.log.read_text()
        assert "Finished server process" in log
        assert "does not end" not in log
        assert launcher == TORCHRUN or "Traceback" not in log, "torchrun tells of its signal by one of its own"


def test_a_server_goes_down_with_a_message_when_a_rank_dies(value_nemo, tmp_path):
    with serving(value_nemo, 1, 2, tmp_path / "log") as served:
        (other,) = served.ranks()
        os.kill(other, signal.SIGKILL)
        assert served.process.wait(120) == 69
        assert "rank 1 ended with -9: this server goes down" in served.log.read_text()


def test_devices_must_be_as_many_as_the_sizes_of_the_checkpoint(value_nemo):
    """Sizes that are not given are the checkpoint's."""
    command = [sys.executable, SCRIPT, f"gpt_model_file={value_nemo}", "server=True", "port=0", "trainer.devices=2"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 78
    assert "devices * num_nodes should equal tensor_model_parallel_size * pipeline_model_parallel_size" in done.stderr
