"""Starting a model server as a child process and waiting until it answers: the one place where this package does so."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from nemo_steerlm.core.errors import UnavailableError
from nemo_steerlm.core.processes import GRACE_SECONDS, ChildProcess

POLL_SECONDS = 0.5
ALL_POSITIONS = ("--max-model-len", "base")
"""Options of a server for a stage: records may be longer than those that its model was taught."""


def serve_command(model: Path, *options: str) -> list[str]:
    """``steerlm serve MODEL`` on a free port, without the page."""
    return [sys.executable, "-m", "nemo_steerlm.cli.main", "serve", str(model), "--port", "0", "--no-page", *options]


class LaunchedServer:
    """A server process of this one. A context manager: leaving the block stops the process.

    A server of this package says its address in a message on its output. Any other is told its port in its command: ``url`` is then
    where it will answer ``GET /health``.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str,
        log: Path,
        url: str | None = None,
        env: Mapping[str, str] | None = None,
        grace: float = GRACE_SECONDS,
    ) -> None:
        """Start ``command``.

        Args:
            command: Program and arguments.
            name: How error messages call the server.
            log: File that gets its output; an older one is replaced.
            url: Address of a server that prints no message.
            env: Variables beside those of this process.
            grace: Seconds between SIGTERM and SIGKILL when it is stopped.
        """
        log.unlink(missing_ok=True)
        self._name = name
        self._url = url
        self._grace = grace
        self.process = ChildProcess(command, log=log, env=env)

    def __enter__(self) -> LaunchedServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.stop(self._grace)

    def await_url(self, timeout: float | None = None) -> str:
        """Wait until the server answers.

        Args:
            timeout: Seconds; None waits as long as the process runs.

        Returns:
            The server's address, ``http://HOST:PORT``.

        Raises:
            UnavailableError: If the process ends, or ``timeout`` passes, before it answers. The message has the end of its log.
        """
        url = self._await_health(timeout) if self._url else self._await_message(timeout)
        if url is None:
            raise self.failure()
        return url

    def failure(self) -> UnavailableError:
        """The error that says what became of the process, with the end of its log."""
        process = self.process
        state = "did not answer in time" if process.running else f"ended with exit code {process.wait()}"
        tail = "\n".join(f"  | {line}" for line in process.tail().splitlines())
        return UnavailableError(f"{self._name} {state}\n{tail}")

    def _await_message(self, timeout: float | None) -> str | None:
        message = self.process.await_message("serving", timeout)
        return None if message is None else str(message["url"])

    def _await_health(self, timeout: float | None) -> str | None:
        # Here, not above: a command that starts no such server need not import httpx.
        import httpx

        from nemo_steerlm.client.http import sync_client

        assert self._url is not None
        deadline = None if timeout is None else time.monotonic() + timeout
        with sync_client(self._url, timeout=httpx.Timeout(5.0), key=None) as client:
            while self.process.running and (deadline is None or time.monotonic() < deadline):
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(f"{self._url}/health").status_code == 200:
                        return self._url
                time.sleep(POLL_SECONDS)
        return None
