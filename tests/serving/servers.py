"""Real server processes for tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import httpx

WAIT = 280.0
"""Seconds until a wait is given up: as long as the whole test may take, so that a slow machine is only slow."""


class Server(NamedTuple):
    """A running ``steerlm serve``."""

    process: subprocess.Popen[str]
    url: str

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=WAIT)


@contextlib.contextmanager
def running(
    folder: Path,
    *options: str,
    command: tuple[str, ...] = ("-m", "nemo_steerlm.cli.main", "serve"),
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """A server of ``folder``, up when the block starts; it is stopped by SIGTERM and must exit 0. ``log``: where its stderr goes."""
    arguments = [sys.executable, *command, str(folder), "--threads", "1", *options] if command[0] == "-m" else [sys.executable, *command]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    with log.open("w+") if log else tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=errors, text=True, env=variables)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                code = process.wait(10)
                errors.seek(0)
                raise AssertionError(f"the server ended with {code}:\n{errors.read()[-4000:]}")
            yield Server(process, json.loads(line)["url"])
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                assert process.wait(WAIT) == 0
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            process.stdout.close()


@contextlib.contextmanager
def connected(server: Server, sent: bytes = b"") -> Iterator[socket.socket]:
    """A connection on which ``sent`` has gone."""
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port), timeout=WAIT) as connection:
        connection.sendall(sent)
        yield connection


def until(condition: Callable[[], bool]) -> None:
    """Wait for ``condition``."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.01)  # for those who are waited for
