"""What this machine is, read from the operating system: processors, memory, disks, GPUs. Nothing is imported for it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

BF16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")
"""Names in /proc/cpuinfo of instructions that multiply matrices in bf16: Intel's AMX, AVX-512, and ARM's."""
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_MOST = 1 << 60
"""What version 1 of control groups writes for no limit is above it."""


class Processor(NamedTuple):
    """The processors of this machine."""

    name: str
    cores: int
    """Those that this process may run on."""
    features: tuple[str, ...]
    """Of those that matter here: bf16 instructions, AVX-512, AVX2."""

    @property
    def bf16(self) -> bool:
        """Whether it has instructions for matrix products in bf16."""
        return any(flag in self.features for flag in BF16_FLAGS)


class Gpu(NamedTuple):
    """A GPU as nvidia-smi sees it."""

    name: str
    memory: int
    """Bytes."""


def processor() -> Processor:
    """The processors of this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    name, flags = platform.processor() or platform.machine(), set[str]()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags |= set(value.split())
    except OSError:
        pass
    return Processor(name, cores, tuple(flag for flag in (*BF16_FLAGS, "avx512f", "avx2") if flag in flags))


def memory() -> tuple[int, int]:
    """Bytes that this process may use at most, and that are free now; zeros where the system does not say."""
    found = {}
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            key, _, value = line.partition(":")
            found[key] = int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return 0, 0
    total, free = found.get("MemTotal", 0), found.get("MemAvailable", 0)
    for path in _CGROUP_LIMITS:
        try:
            limit = int(Path(path).read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
        if limit < _MOST:
            return min(total, limit), min(free, limit)
    return total, free


def disk(folder: Path) -> int:
    """Free bytes where ``folder`` is, or would be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def gpus() -> list[Gpu]:
    """The GPUs that nvidia-smi lists; none without it."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in done.stdout.splitlines():
        name, _, size = line.rpartition(",")
        if size.strip().isdigit():
            found.append(Gpu(name.strip(), int(size) << 20))
    return found
