"""How much memory a further model could have."""

from __future__ import annotations

from pathlib import Path

import torch

_UNKNOWN = 1 << 62


def free_bytes(device: str | None) -> int:
    """Bytes free on ``device`` (by default a GPU where there is one), as far as the system tells."""
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.type == "cuda":
        return int(torch.cuda.mem_get_info(place)[0])
    try:
        told = Path("/proc/meminfo").read_text(encoding="ascii")
        available = next(int(line.split()[1]) * 1024 for line in told.splitlines() if line.startswith("MemAvailable:"))
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
