"""Children log every line, hand on their messages, and end with whoever started them."""

from __future__ import annotations

import os
import select
import signal
import sys

import pytest

from nemo_steerlm.core.processes import GRACE_SECONDS, ChildProcess, exit_on_sigterm, grace_seconds, parse_message, report

WAITS = 'import signal, sys; print(\'{"steerlm": "ready"}\', flush=True); '
IGNORES = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + WAITS + "\nwhile True: signal.pause()"


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
    child = ChildProcess(python(IGNORES), log=tmp_path / "log")
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
from nemo_steerlm.core.processes import ChildProcess, report
child = ChildProcess([sys.executable, '-c', {child_code!r}], log=Path(sys.argv[1]))
child.await_message('ready', 60)
report('child', pid=child.pid)
signal.pause()
"""
    parent = ChildProcess([*python(parent_code), str(tmp_path / "log")], log=tmp_path / "parent")
    child = os.pidfd_open(parent.await_message("child", 60)["pid"])
    os.kill(parent.pid, signal.SIGKILL)
    assert parent.wait() == 128 + signal.SIGKILL
    assert select.select([child], [], [], 60)[0], "the child outlived its parent"


def test_only_whole_messages_are_messages():
    assert parse_message('{"steerlm": "x"}\n') == {"steerlm": "x"}
    assert parse_message('{"other": 1}') is None
    assert parse_message('text {"steerlm": "x"}') is None
    assert parse_message('{"steerlm": 1') is None


def test_a_message_is_one_line_of_json(capsys):
    report("progress", done=1, text="é\n")
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert parse_message(out) == {"steerlm": "progress", "done": 1, "text": "é\n"}


@pytest.mark.parametrize(("variable", "seconds"), [(None, GRACE_SECONDS), ("", GRACE_SECONDS), ("7.5", 7.5), ("soon", GRACE_SECONDS)])
def test_the_grace_is_what_the_environment_says(variable, seconds, monkeypatch):
    monkeypatch.delenv("STEERLM_GRACE_SECONDS", raising=False)
    if variable is not None:
        monkeypatch.setenv("STEERLM_GRACE_SECONDS", variable)
    assert grace_seconds() == seconds == (7.5 if variable == "7.5" else 120.0)


def test_whoever_names_no_grace_gives_the_environments(tmp_path, monkeypatch):
    """Also the end of the block, which would wait two minutes for a process that ignores SIGTERM."""
    monkeypatch.setenv("STEERLM_GRACE_SECONDS", "0.2")
    with ChildProcess(python(IGNORES), log=tmp_path / "log") as child:
        assert child.await_message("ready", 60)
    assert not child.running
    assert child.wait() == 128 + signal.SIGKILL


def test_a_process_that_has_ended_is_stopped_with_its_own_code(tmp_path):
    child = ChildProcess(python("raise SystemExit(7)"), log=tmp_path / "log")
    assert child.wait() == child.stop() == 7


def test_a_child_has_the_variables_and_descriptors_that_it_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("OURS", "1")
    reading, writing = os.pipe()
    code = f"import os; print(os.environ['OURS'], os.environ['MORE'], os.environ['PYTHONUNBUFFERED']); os.write({writing}, b'x')"
    with ChildProcess(python(code), log=tmp_path / "log", env={"MORE": "2"}, pass_fds=[writing]) as child:
        assert child.wait() == 0
    assert child.tail() == "1 2 1"
    assert os.read(reading, 1) == b"x"
    os.close(reading)
    os.close(writing)


def test_the_tail_is_the_last_lines_of_a_log_whatever_it_holds(tmp_path):
    code = "import sys; sys.stdout.buffer.write(b'\\xff\\n'); [print(i) for i in range(30)]; sys.stderr.write('last')"
    with ChildProcess(python(code), log=tmp_path / "log") as child:
        assert child.wait() == 0
    assert child.tail(3) == "28\n29\nlast"
    assert len(child.tail().splitlines()) == 12
    assert child.tail(99).splitlines()[0] == "\ufffd"
    child.log.write_bytes(b"\xff torn")
    assert child.tail() == "\ufffd torn"
    child.log.unlink()
    assert child.tail() == ""


def test_the_first_message_of_a_kind_is_waited_for(tmp_path):
    code = 'print(\'{"steerlm": "a", "n": 1}\\n{"steerlm": "b"}\\n{"steerlm": "a", "n": 2}\')'
    with ChildProcess(python(code), log=tmp_path / "log") as child:
        assert child.await_message("a", 60) == {"steerlm": "a", "n": 1}
        assert child.await_message("c", None) is None
        assert not child.running
    with ChildProcess(python(WAITS + "signal.pause()"), log=tmp_path / "log") as child:
        assert child.await_message("never", 0.01) is None
        assert child.running


def test_sigterm_ends_blocks_in_order():
    before = signal.getsignal(signal.SIGTERM)
    try:
        exit_on_sigterm()
        with pytest.raises(SystemExit) as ended:
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 143
