from __future__ import annotations

import subprocess
import sys

import pytest

from nemo_steerlm.core.errors import DataError

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
