"""``steerlm doctor``: a plain sentence for what is missing or slow; and completion, which shells ask for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from nemo_steerlm import __version__
from nemo_steerlm.cli import doctor
from nemo_steerlm.cli.main import application
from nemo_steerlm.core import hardware
from nemo_steerlm.core.hardware import Gpu, Processor

GIB = 1 << 30
FAST = Processor("p", 16, ("amx_bf16",))


def test_it_says_what_is_here():
    done = CliRunner().invoke(application(["doctor"]), ["doctor"])
    said = done.stdout
    assert done.exit_code == 0, said
    for word in (f"steerlm {__version__}", "[nemo]", "megatron-core 0.13.1", "cores for this process", "memory", "Hugging Face"):
        assert word in said


def test_a_missing_extra_is_named_with_what_installs_it(monkeypatch):
    """Without it a run cannot begin, which the exit code says."""
    monkeypatch.setattr(doctor, "requirements", lambda extra: ["no-such-package"] if extra == "report" else ["typer"])
    done = CliRunner().invoke(application(["doctor"]), ["doctor"])
    assert done.exit_code == 1
    assert (
        "[report]    not installed: no-such-package missing. For judges and the report: pip install 'nemo_steerlm[report]'" in done.stdout
    )
    assert "`steerlm run` cannot run here yet: pip install 'nemo_steerlm[report]'" in done.stdout


def test_requirements_are_those_of_the_package_s_metadata():
    assert {"kopf", "prometheus-client"} == set(doctor.requirements("operator"))
    assert "nemo-toolkit" in doctor.requirements("nemo")


@pytest.mark.parametrize(
    ("machine", "sentence"),
    [
        ((FAST, [], 64 * GIB, 99 * GIB), "Without a GPU, base models of up to about half a billion parameters are practical"),
        ((Processor("p", 16, ("avx2",)), [], 64 * GIB, 99 * GIB), "This CPU has no instructions for bf16"),
        ((Processor("p", 2, ("avx512_bf16",)), [], 64 * GIB, 99 * GIB), "With 2 cores"),
        ((FAST, [], 4 * GIB, 99 * GIB), "4.0 GiB of memory are little"),
        ((FAST, [], 64 * GIB, 3 * GIB), "3.0 GiB of disk are little"),
        ((FAST, [Gpu("g", 80 * GIB)], 64 * GIB, 99 * GIB), "TransformerEngine is not installed"),
    ],
)
def test_what_will_be_slow(machine, sentence):
    assert any(said.startswith(sentence) for said in doctor.expectations(*machine))


def test_nothing_is_said_of_a_machine_that_is_fast(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    assert doctor.expectations(FAST, [Gpu("g", 80 * GIB)], 64 * GIB, 99 * GIB) == []


def test_this_machine_is_read():
    assert hardware.processor().cores >= 1
    total, free = hardware.memory()
    assert total >= free > 0
    assert hardware.disk(hardware.Path("/no/such/folder")) > 0


def test_shells_complete_flags_of_a_command_that_is_imported_only_when_called(tmp_path):
    program = tmp_path / "steerlm"
    program.write_text("from nemo_steerlm.cli.main import main\nmain()\n")
    asked = {"COMP_WORDS": "steerlm validate --", "COMP_CWORD": "2", "_STEERLM_COMPLETE": "complete_bash"}
    done = subprocess.run([sys.executable, str(program)], env={**os.environ, **asked}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["--help"]
    asked["COMP_WORDS"] = "steerlm in"
    asked["COMP_CWORD"] = "1"
    done = subprocess.run([sys.executable, str(program)], env={**os.environ, **asked}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["init"]
