"""Checkpoints of a training: whole or absent, of this training and no other, loadable under any parallel layout.

``<log dir>/checkpoints/step=00000200/`` holds Megatron-Core's distributed checkpoint (weights, optimizer, scheduler) and, written
last, ``training.json``: step, consumed samples, fingerprint, losses so far. The folder gets its name by rename when it is complete, so
a process killed while it saves leaves a ``.partial`` folder that the next save removes. Nothing is read out of file names.
"""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path
from typing import Any

import msgspec

from nemo_steerlm.core.errors import ConfigError, UsageError
from nemo_steerlm.core.files import atomic_write
from nemo_steerlm.megatron import compat

logger = logging.getLogger(__name__)

STATE_FILE = "training.json"


class TrainingState(msgspec.Struct, kw_only=True):
    """Where a training is."""

    fingerprint: dict[str, str]
    step: int = 0
    consumed_samples: int = 0
    train: list[dict[str, float | None]] = msgspec.field(default_factory=list)
    """One entry per step: step, loss, lr, grad_norm, tokens, seconds, and skipped (1) if the weights were left alone.

    None stands for what is not a number, which JSON does not know.
    """
    validation: list[dict[str, Any]] = msgspec.field(default_factory=list)
    """One entry for each validation: step and what the validator found."""
    best_step: int | None = None
    best_value: float | None = None
    validations_since_best: int = 0

    @property
    def skipped_in_a_row(self) -> int:
        """Steps up to the last one that changed nothing."""
        count = 0
        for entry in reversed(self.train):
            if not entry.get("skipped"):
                break
            count += 1
        return count


def finite(value: float) -> float | None:
    """``value``, or None for what JSON cannot hold."""
    return value if math.isfinite(value) else None


def find(folder: Path, state: TrainingState, *, resume: bool, chosen: str | None = None) -> Path | None:
    """The checkpoint to go on from, or None to start anew. Imports nothing heavy.

    Raises ConfigError where ``folder`` holds another training's checkpoints and ``resume`` is on, UsageError where ``chosen`` is no
    checkpoint.
    """
    if chosen is not None:
        path = Path(chosen)
        if not (path / STATE_FILE).is_file():
            raise UsageError(f"model.resume_from_checkpoint: {path}: not a complete checkpoint")
        _require_same(path, state)
        return path
    complete = complete_checkpoints(folder)
    if not complete or not resume:
        return None
    _require_same(complete[-1], state)
    logger.info("going on from %s", complete[-1])
    return complete[-1]


def _require_same(path: Path, state: TrainingState) -> None:
    stored = read_state(path).fingerprint
    differing = [key for key in state.fingerprint if stored.get(key) != state.fingerprint[key]]
    if differing:
        said = ("stage", "optimizer")
        what = " and ".join(f"{key} ({stored.get(key)}, not {state.fingerprint[key]})" if key in said else key for key in differing)
        raise ConfigError(
            f"{path} is another training's checkpoint: it differs in {what}. "
            "Set exp_manager.explicit_log_dir to another folder, or exp_manager.resume_if_exists=False to start anew"
        )


def at_step(folder: Path, step: int) -> Path:
    """The checkpoint of a step."""
    return folder / f"step={step:08d}"


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step=*") if (path / STATE_FILE).is_file())


def read_state(path: Path) -> TrainingState:
    """Raises UsageError where a checkpoint's state cannot be read."""
    try:
        return msgspec.json.decode((path / STATE_FILE).read_bytes(), type=TrainingState)
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(f"{path / STATE_FILE}: {error}") from error


def save(folder: Path, state: TrainingState, shards: dict[str, Any], *, keep: int, best: int | None = None) -> Path:
    """Write a checkpoint and remove all but the newest ``keep``, and that of step ``best``. Every rank calls this.

    ``shards`` is what ``optimizer.sharded_state`` gives.
    """
    import torch
    from megatron.core import dist_checkpointing

    path = at_step(folder, state.step)
    partial = folder / f"{path.name}.partial"
    first = torch.distributed.get_rank() == 0
    if first:
        for left in (*folder.glob("*.partial"), path):
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir(parents=True)
    torch.distributed.barrier()
    with compat.one_thread():
        dist_checkpointing.save(shards, str(partial))
    torch.distributed.barrier()
    if first:
        with atomic_write(partial / STATE_FILE) as file:
            file.write(msgspec.json.encode(state).decode())
        partial.rename(path)
        for old in complete_checkpoints(folder)[: -max(1, keep)]:
            if best is None or old != at_step(folder, best):
                shutil.rmtree(old)
    torch.distributed.barrier()
    logger.info("saved %s", path)
    return path


def load(path: Path, shards: dict[str, Any]) -> dict[str, Any]:
    """The weights, optimizer and scheduler of a checkpoint, for ``optimizer.load_state``. Every rank calls this.

    ``shards`` says which parts this rank wants: ``optimizer.sharded_state(model, loading=True)``.
    """
    from megatron.core import dist_checkpointing

    with compat.one_thread():
        loaded: dict[str, Any] = dist_checkpointing.load(shards, str(path))
    return loaded


def remove_all(folder: Path) -> None:
    """Remove every checkpoint of ``folder``, complete or not; nothing else in it."""
    for path in folder.glob("step=*"):
        shutil.rmtree(path)
