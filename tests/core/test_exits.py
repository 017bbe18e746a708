from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_steerlm.core.errors import DataError
from nemo_steerlm.core.extras import EXTRAS

PROGRAM = """
from nemo_steerlm.core.errors import DataError
from nemo_steerlm.core.exits import run_and_exit

class Loud:
    def __del__(self):
        print("collected", flush=True)

loud = Loud()
loud.itself = loud

def function():
    {body}

{call}
"""


@pytest.mark.parametrize(
    ("body", "call", "code", "collected"),
    [
        ("pass", "function()", 0, True),
        ("pass", "run_and_exit(function)", 0, False),
        ("raise DataError('bad')", "run_and_exit(function)", DataError.exit_code, False),
    ],
)
def test_a_program_that_ends_collects_no_more_garbage(body, call, code, collected):
    """What NeMo imports holds an interpreter up for seconds."""
    command = [sys.executable, "-c", PROGRAM.format(body=body, call=call)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "collected" in done.stdout) == (code, collected)
    assert "Traceback" not in done.stderr


NEMO = "steerlm: this needs nemo, which is not installed: pip install 'nemo_steerlm[nemo]'"


@pytest.mark.parametrize(
    ("statement", "code", "said"),
    [
        ("import kopf_is_not_here", 1, "ModuleNotFoundError: No module named 'kopf_is_not_here'"),
        ("import sys; sys.modules['nemo'] = None; import nemo.core", 78, NEMO),
        ("import json.nothing", 1, "ModuleNotFoundError: No module named 'json.nothing'"),
    ],
)
def test_a_library_of_a_missing_extra_is_one_line(statement, code, said):
    command = [sys.executable, "-c", PROGRAM.format(body=statement, call="run_and_exit(function)")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (code, said)
    assert ("Traceback" in done.stderr) == (code == 1)


def test_every_extra_of_the_table_is_one_that_can_be_installed():
    listed = (Path(__file__).parents[2] / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    assert set(EXTRAS.values()) <= set(re.findall(r"^(\w+) = \[", listed, re.MULTILINE))
