"""Serving a ``.nemo``: it is written out as a Hugging Face folder by a process of its own, which the embedded engine then loads.

One process and one device: a model that needs tensor or pipeline parallelism to fit is refused. Weights go through a temporary folder.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from nemo_steerlm.core.errors import ConfigError, UsageError
from nemo_steerlm.serving.engines.huggingface import HuggingFaceEngine


def load_megatron_engine(
    path: str | Path,
    *,
    tensor_model_parallel_size: int = 1,
    pipeline_model_parallel_size: int = 1,
    max_rows: int = 32,
    device: str | None = None,
) -> HuggingFaceEngine:
    """The engine for a ``.nemo`` file saved under any layout.

    Raises ConfigError for parallel sizes above 1, UsageError where the file cannot be converted.
    """
    if tensor_model_parallel_size * pipeline_model_parallel_size > 1:
        raise ConfigError(
            f"serving under tensor_model_parallel_size={tensor_model_parallel_size} and "
            f"pipeline_model_parallel_size={pipeline_model_parallel_size} is not supported: a .nemo of any layout is served by one process"
        )
    with tempfile.TemporaryDirectory(prefix="steerlm-serve-") as scratch:
        folder = Path(scratch) / Path(path).stem
        # Its own process: NeMo's patches for machines without CUDA stay out of the server.
        command = [sys.executable, "-m", "nemo_steerlm.cli.main", "convert", str(path), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            raise UsageError(f"{path}: cannot be converted: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
        return HuggingFaceEngine(folder, device=device, max_rows=max_rows)
