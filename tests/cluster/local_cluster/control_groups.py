"""The control group below which the kubelet puts pods: in every hierarchy of version 1, or in the one tree of version 2."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PREFIX = "steerlm-test-"
CONTROLLERS = ("cpuset", "cpu", "io", "memory", "pids")
WEIGHTS = {"cpu.shares": "4096", "cpu.weight": "400"}
"""All pods together weigh as four processes: as one, which is the default, they would starve on a busy machine."""


def name_for(pid: int) -> str:
    """A name that says whose it is; groups of processes that are gone are removed on the way."""
    for folder in set(_folders(f"{PREFIX}*")):
        owner = folder.name.removeprefix(PREFIX).partition("-")[0]
        if not Path("/proc", owner).exists() and not list(_processes(folder)):
            remove(folder.name)
    return f"{PREFIX}{pid}-{time.monotonic_ns()}"


def create(name: str) -> None:
    if (ROOT / "cgroup.controllers").exists():
        available = (ROOT / "cgroup.controllers").read_text().split()
        for controller in CONTROLLERS:
            if controller in available:
                (ROOT / "cgroup.subtree_control").write_text(f"+{controller}")
        (ROOT / name).mkdir()
        _weigh(ROOT / name)
        return
    for hierarchy in _hierarchies():
        folder = hierarchy / name
        folder.mkdir(exist_ok=True)
        for file in ("cpuset.cpus", "cpuset.mems"):
            # A new cpuset is empty, and nothing can run in an empty one.
            if (hierarchy / file).exists():
                (folder / file).write_text((hierarchy / file).read_text())
        _weigh(folder)


def pod_processes(name: str, pod: str) -> set[int]:
    """The processes of a pod, by its uid."""
    return {int(process) for folder in _folders(name) for below in folder.rglob(f"pod{pod}") for process in _processes(below)}


def _weigh(folder: Path) -> None:
    for file, weight in WEIGHTS.items():
        if (folder / file).exists():
            (folder / file).write_text(weight)


def remove(name: str, patience: float = 10) -> None:
    """Remove the group everywhere, deepest first. The kernel may need a moment after the last process."""
    deadline = time.monotonic() + patience
    while folders := list(_folders(name)):
        for folder in folders:
            for below in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
                with contextlib.suppress(OSError):
                    below.rmdir()
            with contextlib.suppress(OSError):
                folder.rmdir()
        if time.monotonic() > deadline:
            return


def _hierarchies() -> list[Path]:
    return [path for path in ROOT.iterdir() if path.is_dir() and not path.is_symlink() and (path / "cgroup.procs").exists()]


def _folders(pattern: str) -> list[Path]:
    return [*ROOT.glob(pattern), *ROOT.glob(f"*/{pattern}")]


def _processes(folder: Path) -> list[str]:
    return [line for path in folder.rglob("cgroup.procs") for line in path.read_text().split()]
