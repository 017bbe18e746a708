"""Children log every line, hand on their messages, and end with whoever started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from nemo_steerlm.core.processes import ChildProcess, parse_message

WAITS = 'import signal, sys; print(\'{"steerlm": "ready"}\', flush=True); '


def python(code):
    return [sys.executable, "-c", code]


def test_output_is_logged_and_messages_handed_on(tmp_path):
    seen = []
    code = 'print(\'plain\'); print(\'{"steerlm": "progress", "done": 1}\'); print(\'{"steerlm": broken\'); raise SystemExit(65)'
    with ChildProcess(python(code), log=tmp_path / "a" / "log", on_message=seen.append) as child:
        assert child.wait() == 65
    assert seen == [{"steerlm": "progress", "done": 1}]
    assert child.log.read_text().splitlines()[0] == "plain"
    assert child.tail() == 'plain\n{"steerlm": broken'


def test_leaving_the_block_ends_the_process(tmp_path):
    with ChildProcess(python(WAITS + "signal.pause()"), log=tmp_path / "log") as child:
        assert child.await_message("ready", 30)
        assert child.running
    assert child.wait() == 128 + signal.SIGTERM


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace(tmp_path):
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + WAITS + "\nwhile True: signal.pause()"
    child = ChildProcess(python(code), log=tmp_path / "log")
    assert child.await_message("ready", 30)
    assert child.stop(grace=0.2) == 128 + signal.SIGKILL


def test_no_message_from_a_process_that_ended(tmp_path):
    with ChildProcess(python("pass"), log=tmp_path / "log") as child:
        assert child.await_message("ready", 30) is None


def test_a_child_dies_with_a_parent_that_was_killed(tmp_path):
    child_code = WAITS + "signal.pause()"
    parent_code = f"""
import signal, sys
from pathlib import Path
from nemo_steerlm.core.processes import ChildProcess
child = ChildProcess([sys.executable, '-c', {child_code!r}], log=Path(sys.argv[1]))
child.await_message('ready', 30)
print(child.pid, flush=True)
signal.pause()
"""
    parent = subprocess.Popen([*python(parent_code), str(tmp_path / "log")], stdout=subprocess.PIPE, text=True)
    child = os.pidfd_open(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    import select

    assert select.select([child], [], [], 30)[0], "the child outlived its parent"


def test_only_whole_messages_are_messages():
    assert parse_message('{"steerlm": "x"}\n') == {"steerlm": "x"}
    assert parse_message('{"other": 1}') is None
    assert parse_message('text {"steerlm": "x"}') is None
