"""How well a SteerLM model in training steers: it is exported, answers held-out prompts in a process of its own, and is read there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import torch

from nemo_steerlm.core.errors import ConfigError
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.megatron import lora
from nemo_steerlm.megatron.hf_export import export_hf

COMMAND = "nemo_steerlm.inference.control_error"
LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "TORCHELASTIC_RUN_ID")
"""What a launcher tells the ranks of a training, which the process is none of."""


def control_error(model: Any, info: ModelInfo | None, job: Path, folder: Path, *, adapters: bool) -> float:
    """The mean control error of ``model`` as it is now. Every rank calls this and gets the same.

    Args:
        model: The model in training.
        info: What it will say of itself.
        job: A ``ControlJob`` as JSON.
        folder: For the export, which is removed.
        adapters: Whether adapters are learned: their products are in the export.

    Returns:
        The error, in steps of an attribute's scale.

    Raises:
        ConfigError: If the process fails, with the last line that it said.
    """
    if adapters:
        with lora.merged(model):
            export_hf(model, folder, info, in_training=True)
    else:
        export_hf(model, folder, info)
    figure = torch.zeros(1, dtype=torch.float64, device="cuda")
    said = _ask(job, folder) if torch.distributed.get_rank() == 0 else ""
    if isinstance(said, float):
        figure[0] = said
    elif said:
        figure[0] = torch.nan
    torch.distributed.broadcast(figure, src=0)
    if torch.isnan(figure[0]):
        raise ConfigError(f"control error cannot be measured: {said}" if said else "control error cannot be measured; see rank 0")
    return float(figure[0])


def _ask(job: Path, folder: Path) -> float | str:
    """The figure, or what went wrong."""
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHERS}
    with tempfile.TemporaryDirectory(prefix="steerlm-control-") as scratch:
        target = Path(scratch) / "result.json"
        command = [sys.executable, "-m", COMMAND, str(job), str(folder), str(target)]
        done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)
        if done.returncode:
            return next(iter(done.stderr.strip().splitlines()[::-1]), f"exit code {done.returncode}")
        return float(msgspec.json.decode(target.read_bytes())["control"])
