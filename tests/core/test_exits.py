from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemo_steerlm.core import errors
from nemo_steerlm.core.errors import DataError, SteerLMError
from nemo_steerlm.core.exits import recorded_error, run_and_exit
from nemo_steerlm.core.extras import EXTRAS, missing_extra

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


def raising(error):
    def function():
        raise error

    return function


@pytest.fixture
def error_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    yield tmp_path / "error.json"
    gc.unfreeze()


@pytest.mark.parametrize(
    ("kind", "code"), [("UsageError", 2), ("DataError", 65), ("UnavailableError", 69), ("TryAgainError", 75), ("ConfigError", 78)]
)
def test_an_error_of_ours_is_one_line_and_its_code(kind, code, error_file, capsys):
    with pytest.raises(SystemExit) as ended:
        run_and_exit(raising(getattr(errors, kind)("it is so")), "prog")
    assert ended.value.code == code
    assert capsys.readouterr().err == "prog: it is so\n"
    assert recorded_error(error_file) == "it is so"


def test_nobody_s_name_is_the_programs(error_file, capsys):
    with pytest.raises(SystemExit):
        run_and_exit(raising(SteerLMError("x")))
    assert capsys.readouterr().err == "steerlm: x\n"


def test_an_error_of_somebody_else_is_raised_and_recorded_with_where_it_was(error_file):
    with pytest.raises(ZeroDivisionError):
        run_and_exit(lambda: 1 / 0)
    message = json.loads(error_file.read_text())["message"]
    assert message["message"] == recorded_error(error_file) == "ZeroDivisionError: division by zero"
    assert "test_exits.py" in message["extraInfo"]["py_callstack"]
    assert 0 <= time.time() - int(message["extraInfo"]["timestamp"]) < 1000


def test_ctrl_c_is_130_and_a_reader_that_has_gone_is_141(error_file, monkeypatch):
    with pytest.raises(SystemExit) as ended:
        run_and_exit(raising(KeyboardInterrupt()))
    assert ended.value.code == 130
    closed = []
    monkeypatch.setattr(sys.stderr, "close", lambda: closed.append(True))
    with pytest.raises(SystemExit) as ended:
        run_and_exit(raising(BrokenPipeError()))
    assert (ended.value.code, closed) == (141, [True])
    assert not error_file.exists()


def test_an_error_file_that_cannot_be_written_changes_nothing(tmp_path, monkeypatch, capsys):
    for file in (str(tmp_path / "no" / "folder"), ""):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", file)
        with pytest.raises(SystemExit):
            run_and_exit(raising(SteerLMError("x")))
        assert capsys.readouterr().err == "steerlm: x\n"
    gc.unfreeze()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"message": "text"}', '{"message": {}}'])
def test_what_is_no_error_file_says_nothing(content, tmp_path):
    (tmp_path / "e").write_text(content)
    assert recorded_error(tmp_path / "e") is None
    assert recorded_error(tmp_path / "absent") is None


def test_a_part_of_a_library_is_of_the_librarys_extra(monkeypatch):
    monkeypatch.setitem(EXTRAS, "no_such_library", "report")
    wanted = "this needs no_such_library, which is not installed: pip install 'nemo_steerlm[report]'"
    assert str(missing_extra(ModuleNotFoundError(name="no_such_library.part.of"))) == wanted
    assert str(missing_extra(ModuleNotFoundError(name="no_such_library"))) == wanted
    assert missing_extra(ModuleNotFoundError(name="no_such_other")) is None
    assert missing_extra(ModuleNotFoundError(name=None)) is None
    monkeypatch.setitem(EXTRAS, "json", "report")
    assert missing_extra(ModuleNotFoundError(name="json.nothing")) is None, "the library is there: its part is missing for another reason"
