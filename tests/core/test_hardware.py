"""What is read of this machine, against what other programs and system calls say of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_steerlm.core import hardware
from nemo_steerlm.core.hardware import Gpu, Processor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's files")


def test_the_processors_are_those_of_this_process():
    found = hardware.processor()
    assert found.cores == int(
        subprocess.run(["nproc"], capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]}).stdout
    )
    listed = subprocess.run(
        ["grep", "-E", "model name|flags|Features", "/proc/cpuinfo"], capture_output=True, text=True, check=False
    ).stdout
    if "model name" in listed:
        assert f": {found.name}\n" in listed
    assert found.name == found.name.strip() != ""
    assert [flag for flag in ("amx_bf16", "avx512_bf16", "bf16", "avx512f", "avx2") if flag in listed.split()] == list(found.features)


@pytest.mark.parametrize(
    ("features", "bf16"),
    [(("amx_bf16", "avx2"), True), (("avx512_bf16",), True), (("bf16",), True), (("avx512f", "avx2"), False), ((), False)],
)
def test_bf16_is_fast_with_instructions_for_it(features, bf16):
    assert Processor("p", 1, features).bf16 is bf16


class Files:
    """What the system's files hold instead, for as long as a test runs."""

    def __init__(self, monkeypatch):
        self.contents = {}
        read = Path.read_text

        def instead(path, *arguments, **named):
            if str(path) not in self.contents:
                return read(path, *arguments, **named)
            if self.contents[str(path)] is None:
                raise FileNotFoundError(path)
            return self.contents[str(path)]

        monkeypatch.setattr(Path, "read_text", instead)


@pytest.fixture
def files(monkeypatch):
    return Files(monkeypatch)


def test_another_machines_processor(files):
    files.contents["/proc/cpuinfo"] = "processor\t: 0\nmodel name\t: Fast: 9\nflags\t\t: fpu avx2\n\nFeatures\t: bf16\n"
    assert (hardware.processor().name, hardware.processor().features) == ("Fast: 9", ("bf16", "avx2"))
    files.contents["/proc/cpuinfo"] = None
    assert hardware.processor().features == ()
    assert hardware.processor().name


MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    600 kB\nHugePages_Total:       0\n"
V2, V1 = "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"


@pytest.mark.parametrize(
    ("limits", "memory"),
    [
        ({V2: None, V1: None}, (1000, 600)),
        ({V2: "max\n", V1: None}, (1000, 600)),
        ({V2: None, V1: str(9_223_372_036_854_771_712)}, (1000, 600)),
        ({V2: str(800 * 1024), V1: None}, (800, 600)),
        ({V2: str(500 * 1024), V1: None}, (500, 500)),
        ({V2: None, V1: str(500 * 1024)}, (500, 500)),
        ({V2: str(2000 * 1024), V1: None}, (1000, 600)),
    ],
)
def test_a_container_s_limit_is_the_memory_that_there_is(files, limits, memory):
    files.contents |= {"/proc/meminfo": MEMINFO, **limits}
    assert hardware.memory() == tuple(size * 1024 for size in memory)


@pytest.mark.parametrize("content", [None, "MemTotal:\n", "MemTotal: many kB\n"])
def test_memory_that_nobody_can_tell_is_nothing(files, content):
    files.contents["/proc/meminfo"] = content
    assert hardware.memory() == (0, 0)


def test_memory_is_what_the_kernel_has():
    total, free = hardware.memory()
    assert 0 < free <= total <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_folder_that_is_not_there_yet_is_on_its_parents_disk(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    assert hardware.disk(tmp_path / "a" / "b") == pytest.approx(free, rel=0.1)


def test_gpus_are_those_that_nvidia_smi_lists(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\n[ "$*" = "--query-gpu=name,memory.total --format=csv,noheader,nounits" ] || exit 1\n'
                       'echo "NVIDIA H200, 143771"\necho "Odd, name, 1024"\necho "MIG device, [N/A]"\n')  # fmt: skip
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert hardware.gpus() == [Gpu("NVIDIA H200", 143771 * 1024**2), Gpu("Odd, name", 1024**3)]
    program.write_text("#!/bin/sh\necho none, 3\nexit 9\n")
    assert hardware.gpus() == []
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert hardware.gpus() == []
