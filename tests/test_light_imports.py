"""Data tools, clients and manifest commands start at once: what they import is counted, in fresh processes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nemo_steerlm.cli.main import COMMANDS

HEAVY = {"torch", "nemo", "megatron", "lightning", "transformers", "datasets", "pandas", "tensorflow", "sklearn", "scipy"}
"""Never imported by a command that only reads its flags."""

SLOW = {"numpy", "rich", "httpx", "huggingface_hub", "sentencepiece", "tokenizers", "google", "fastapi", "uvicorn", "matplotlib", "jinja2"}
"""Imported only once the command runs; together they cost more than starting does."""

EAGER = {"pydantic", "yaml"}
"""What manifests are made of: the general help needs neither."""


def imported(code: str) -> set[str]:
    """Top-level modules in ``sys.modules`` after ``code``, however it exits."""
    program = f"import sys, atexit\natexit.register(lambda: print('\\nMODULES', *{{m.split('.')[0] for m in sys.modules}}))\n{code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def command(*arguments: str) -> str:
    return f"sys.argv = ['steerlm', *{arguments!r}]\nfrom nemo_steerlm.cli.main import main\nmain()"


def test_importing_the_package_imports_no_library():
    assert not imported("import nemo_steerlm") & (HEAVY | SLOW | EAGER | {"typer", "msgspec"})


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_the_general_help_imports_no_command(flag):
    assert not imported(command(flag)) & (HEAVY | SLOW | EAGER)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_imports_nothing_heavy(name):
    assert not imported(command(name, "--help")) & HEAVY


@pytest.mark.parametrize("name", ["preprocess", "clean", "render", "annotate", "chat", "answer"])
def test_data_and_client_commands_read_their_flags_with_little(name):
    assert not imported(command(name, "--help")) & (HEAVY | SLOW | EAGER)


def test_reading_and_cleaning_imports_nothing_heavy():
    modules = ["preprocessing", "cleaning", "sources", "packages", "tables"]
    assert not imported(f"from nemo_steerlm.data import {', '.join(modules)}") & (HEAVY | SLOW)
