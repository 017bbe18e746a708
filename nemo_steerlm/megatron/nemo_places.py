"""Where NeMo puts what it writes: archives or folders, and the temporary files on the way."""

from __future__ import annotations

import contextlib
import multiprocessing.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state

GB = 1e9
FOLDER_ABOVE_GB = 20.0
"""A larger model's ``.nemo`` is a folder: an archive is packed by one thread, and unpacked by every process that reads it."""


@contextlib.contextmanager
def temporary_files_in(folder: Path | None) -> Iterator[None]:
    """Have temporary files made in ``folder`` within, where the output has room as well; None leaves them where they are.

    NeMo and what it calls ask ``tempfile`` for a place, and name none.
    """
    multiprocessing.util.get_temp_dir()  # of sockets, whose paths have to be short: chosen once, before
    before = tempfile.tempdir
    tempfile.tempdir = before if folder is None else str(folder.absolute())
    try:
        yield
    finally:
        tempfile.tempdir = before


def gigabytes(model: Any) -> float:
    """Of the weights of ``model`` on all ranks that share it. Every rank calls this."""
    mine = sum(p.numel() * p.element_size() for p in model.parameters())
    total = torch.tensor(float(mine), dtype=torch.float64, device="cuda")
    torch.distributed.all_reduce(total, group=parallel_state.get_model_parallel_group())
    return float(total) / GB
