"""``steerlm doctor``: what is installed, what this machine is, and what will be slow."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
from pathlib import Path

import typer

from nemo_steerlm import __version__
from nemo_steerlm.core import hardware

GIB = 1 << 30
NEEDED = {
    "nemo": "training and Megatron serving",
    "serve": "servers and the page",
    "openvino": "the OpenVINO engine",
    "report": "judges and the report",
    "data": "Parquet files",
    "operator": "the Kubernetes operator",
    "docs": "this documentation as a site",
}
"""Extras of this package, and what each is for."""
SMALL_MEMORY = 6 * GIB
"""Below it the quickstart's trainings do not fit beside a system: the largest process had 3.7 GB."""
SMALL_DISK = 10 * GIB
FEW_CORES = 4


def doctor() -> None:
    """Say what is installed, what this machine is, and what will be slow, a plain sentence each.

    Exit code 0 where pipelines can run here, 1 where something that they need is missing.
    """
    print(f"steerlm {__version__}, Python {platform.python_version()} on {platform.platform()}")
    print("\nInstalled")
    # An editable install keeps the metadata of the day it was made, which may not know an extra yet.
    missing = [name for name in NEEDED if requirements(name) and not _print_extra(name)]
    print("\nThis machine")
    slow = _machine()
    print("\nCaches")
    for name, folder in caches().items():
        print(f"  {name:16} {folder}: {_size(folder)}")
    print("\nWhat to expect")
    wanted = [name for name in ("nemo", "serve", "report") if name in missing]
    for sentence in slow or ["Nothing here is known to be slow."]:
        print(f"  {sentence}")
    if wanted:
        print(f"  `steerlm run` cannot run here yet: pip install 'nemo_steerlm[{','.join(wanted)}]'")
        raise typer.Exit(1)


def _print_extra(extra: str) -> bool:
    """A line about what an extra needs; whether all of it is there."""
    found, absent = [], []
    for name in requirements(extra):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            absent.append(name)
    what = f"[{extra}]"
    if absent:
        print(f"  {what:11} not installed: {', '.join(absent)} missing. For {NEEDED[extra]}: pip install 'nemo_steerlm{what}'")
    else:
        print(f"  {what:11} {', '.join(found)}")
    return not absent


def requirements(extra: str) -> list[str]:
    """The packages that an extra of this package needs, as its metadata says."""
    found = []
    for requirement in importlib.metadata.requires("nemo_steerlm") or []:
        name, _, marker = requirement.partition(";")
        if re.search(rf"extra == ['\"]{extra}['\"]", marker):
            found.append(re.split(r"[\s\[<>=!~(]", name.strip(), maxsplit=1)[0])
    return list(dict.fromkeys(found))


def _machine() -> list[str]:
    """Lines about this machine; returns the sentences about what will be slow or not fit."""
    processor, gpus, (total, free) = hardware.processor(), hardware.gpus(), hardware.memory()
    room = hardware.disk(Path.cwd())
    print(f"  {'processor':11} {processor.name}, {processor.cores} cores for this process; {', '.join(processor.features) or 'no AVX2'}")
    print(f"  {'memory':11} {total / GIB:.1f} GiB, {free / GIB:.1f} GiB free")
    print(f"  {'disk':11} {room / GIB:.1f} GiB free in {Path.cwd()}")
    for gpu in gpus:
        print(f"  {'GPU':11} {gpu.name}, {gpu.memory / GIB:.0f} GiB")
    if not gpus:
        print(f"  {'GPU':11} none that nvidia-smi lists")
    return expectations(processor, gpus, total, room)


def expectations(processor: hardware.Processor, gpus: list[hardware.Gpu], total: int, room: int) -> list[str]:
    """What will be slow or not fit, a sentence each.

    Args:
        processor: The processors.
        gpus: The GPUs.
        total: Bytes of memory.
        room: Free bytes on the disk.
    """
    said = []
    if not gpus:
        said.append("Without a GPU, base models of up to about half a billion parameters are practical; `steerlm init` estimates yours.")
        if not processor.bf16:
            said.append("This CPU has no instructions for bf16 (AMX or AVX-512 BF16): trainings compute in fp32, about half as fast.")
        if processor.cores < FEW_CORES:
            said.append(f"With {processor.cores} cores, trainings and servers take turns: expect minutes for the quickstart, not seconds.")
    elif importlib.util.find_spec("transformer_engine") is None:
        said.append("TransformerEngine is not installed: trainings on GPUs use Megatron-Core's own layers, which are slower.")
    if total and total < SMALL_MEMORY:
        said.append(f"{total / GIB:.1f} GiB of memory are little: the quickstart's largest process needs 3.7 GB.")
    if room < SMALL_DISK:
        said.append(
            f"{room / GIB:.1f} GiB of disk are little: an environment with every extra takes several GiB, and each model its size twice."
        )
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        said.append("PYTHONDONTWRITEBYTECODE is set: every stage compiles what it imports. Unset it.")
    return said


def caches() -> dict[str, Path]:
    """Folders that this package and those it uses keep things in."""
    from nemo_steerlm.data.cache import default_cache

    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface")
    return {"nemo_steerlm": default_cache(), "Hugging Face": home}


def _size(folder: Path) -> str:
    if not folder.is_dir():
        return "empty"
    size = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return f"{size / GIB:.1f} GiB"
