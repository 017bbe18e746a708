"""Whether the memory that is free holds another model."""

from __future__ import annotations

from pathlib import Path

import torch

_UNKNOWN = 1 << 62


def missing_memory(folder: Path, device: str | None) -> str:
    """What keeps a model from fitting into the free memory of ``device``, twice its weights' size counted; empty if it fits."""
    needed = 2 * sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    free = free_bytes(device)
    return "" if needed <= free else f"{needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free"


def free_bytes(device: str | None) -> int:
    """Bytes free on ``device`` (None: a GPU if there is one, else the CPU's memory), as far as the system says."""
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.type == "cuda":
        return int(torch.cuda.mem_get_info(place)[0])
    try:
        meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
        available = next(int(line.split()[1]) * 1024 for line in meminfo.splitlines() if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return _UNKNOWN
    return min(available, _control_group_bytes())


def _control_group_bytes() -> int:
    """What is left of the container's limit."""
    folder = Path("/sys/fs/cgroup")
    try:
        return int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())
    except (OSError, ValueError):
        return _UNKNOWN
