"""Child processes that never outlive their parent, log every line, and report to it in JSON messages on standard output."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from nemo_steerlm.core.environment import GRACE

Message = dict[str, Any]
"""A JSON object with a key ``steerlm``, which says what it is: ``progress``, ``warning``, ``cached``, ``done``, ``serving``."""

PR_SET_PDEATHSIG = 1
GRACE_SECONDS = 120.0
"""How long a child may take to save after SIGTERM before it is killed, unless the environment says otherwise: a training saves."""
LAUNCHER_SECONDS = 10.0
"""Of that, what the processes around the one that saves need to end."""
END_SECONDS = 5.0
"""How long a process may take to end after it closed its output."""


def grace_seconds() -> float:
    """How long this process has after SIGTERM, as ``STEERLM_GRACE_SECONDS`` says."""
    with contextlib.suppress(ValueError):
        return float(os.environ[GRACE]) if os.environ.get(GRACE) else GRACE_SECONDS
    return GRACE_SECONDS


def report(kind: str, **fields: Any) -> None:
    """Print one message for the parent process, as a JSON line on standard output.

    Args:
        kind: The value of the key ``steerlm``.
        fields: The message's other keys; anything that JSON can hold.
    """
    sys.stdout.write(json.dumps({"steerlm": kind, **fields}) + "\n")
    sys.stdout.flush()


def parse_message(line: str) -> Message | None:
    """The message in one line of output, or None if the line is ordinary text."""
    if not line.startswith('{"steerlm"'):
        return None
    try:
        message: Message = json.loads(line)
    except ValueError:
        return None
    return message


class ChildProcess:
    """A running process: its output goes to a log file line by line, its messages to ``on_message``.

    A context manager: leaving the block stops the process, first with SIGTERM, after the grace period with SIGKILL. On Linux the
    process also gets SIGTERM when its parent dies, however that happens.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        on_message: Callable[[Message], None] | None = None,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Start ``command``.

        Args:
            command: Program and arguments.
            log: File to which the output is appended; its folder is made.
            on_message: Called with each message, in a thread of its own.
            env: Variables beside those of this process.
            pass_fds: File descriptors that stay open in the child.

        Raises:
            OSError: If the program cannot be started.
        """
        self.command = list(command)
        self.log = log
        self._on_message = on_message
        self._messages = threading.Condition()
        self._seen: list[Message] = []
        self._finished = False
        log.parent.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            # A session of its own: Ctrl-C reaches the parent alone, which then stops its children in order.
            start_new_session=True,
            preexec_fn=functools.partial(die_with_parent, os.getpid()) if sys.platform == "linux" else None,  # noqa: PLW1509 - only a system call
            pass_fds=tuple(pass_fds),
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, name=f"log {log.name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None  # it was asked for
        with self.log.open("a", encoding="utf-8") as log:
            for line in self._process.stdout:
                log.write(line)
                log.flush()
                message = parse_message(line)
                if message is None:
                    continue
                with self._messages:
                    self._seen.append(message)
                    self._messages.notify_all()
                if self._on_message:
                    self._on_message(message)
        with self._messages:
            self._finished = True
            self._messages.notify_all()

    def await_message(self, kind: str, timeout: float | None) -> Message | None:
        """Wait for a message.

        Args:
            kind: The value of its key ``steerlm``.
            timeout: Seconds; None waits as long as the process runs.

        Returns:
            The first message of that kind, or None if the process ended or the time passed without one.
        """
        with self._messages:
            self._messages.wait_for(lambda: self._finished or any(m["steerlm"] == kind for m in self._seen), timeout)
            message = next((m for m in self._seen if m["steerlm"] == kind), None)
        if message is None and self._finished:
            # The output closes a moment before the process has an exit code.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
        return message

    def wait(self) -> int:
        """Wait until the process ends. Returns its exit code, 128 + signal if a signal ended it."""
        code = self._process.wait()
        self._reader.join()
        return 128 - code if code < 0 else code

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def stop(self, grace: float | None = None) -> int:
        """Send SIGTERM, and SIGKILL to its process group after ``grace`` seconds, ``grace_seconds()`` by default.

        Returns:
            The exit code, 128 + signal if a signal ended the process.
        """
        if self.running:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(grace_seconds() if grace is None else grace)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
        return self.wait()

    def tail(self, lines: int = 12) -> str:
        """The last ``lines`` of its log without messages: what to show if it failed."""
        text = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
        return "\n".join([line for line in text if parse_message(line) is None][-lines:])

    def __enter__(self) -> ChildProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def die_with_parent(parent: int) -> None:
    """Have Linux send this process SIGTERM when ``parent``, which started it, ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # the parent died before the call above
        os._exit(128 + signal.SIGTERM)


def exit_on_sigterm() -> None:
    """Turn SIGTERM into SystemExit(143), so that ``with`` and ``finally`` blocks stop children and keep files whole."""

    def stop(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
