"""A pool of servers: how many requests each gets (AIMD), when it is left alone, and when it is probed again after a failure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import TypeVar

import httpx

from nemo_steerlm.client.announcement import Announcement, read_announcement
from nemo_steerlm.client.retry import Fault, RequestFailed, RetryPolicy
from nemo_steerlm.core.errors import ConfigError, SteerLMError, UnavailableError, UsageError, shown
from nemo_steerlm.core.objectives import ModelKind

logger = logging.getLogger(__name__)
T = TypeVar("T")

START_LIMIT = 4
FAILURES_TO_REST = 3
REPORT_SECONDS = 30.0
"""Between two lines of the log that say for which server the pool waits."""


class Server:
    """One server's address and state."""

    def __init__(self, url: str, limit: int = START_LIMIT) -> None:
        self.url = url.rstrip("/")
        self.announcement: Announcement | None = None
        """Its announcement when it was last ready."""
        self.ready = False
        self.limit = float(limit)
        """Concurrent requests: one more per round of successes, half after a failure (AIMD)."""
        self.in_flight = 0
        self.failures = 0
        """Consecutive failures."""
        self.rests_until = 0.0
        self.epoch = 0
        """Number of rests so far: a request sent before a rest cannot cause the next one."""
        self.last_failure = "was never reached"
        self.reported = -REPORT_SECONDS
        """When the log last said that it is waited for."""


class ServerPool:
    """Sends requests to whichever server can take one. An async context manager.

    All servers must announce the same model: one that announces another ends the run with ConfigError.
    """

    def __init__(
        self,
        urls: Sequence[str],
        client: httpx.AsyncClient,
        policy: RetryPolicy,
        *,
        max_in_flight: int = 32,
        start_limit: int = START_LIMIT,
        kind: ModelKind = "value",
    ) -> None:
        """Check the addresses.

        Args:
            urls: The servers; duplicates count once.
            client: Sends the requests.
            policy: Attempts, timeouts and patience.
            max_in_flight: Upper limit of concurrent requests per server.
            start_limit: Concurrent requests per server before its capacity is known.
            kind: Which model counts if a server has several, as one with a steer model and a value model that reads for it.

        Raises:
            UsageError: If ``urls`` is empty or has something that is no address.
        """
        if not urls:
            raise UsageError("no server: give --server http://HOST:PORT, several times for several")
        for url in urls:
            if not url.startswith(("http://", "https://")):
                raise UsageError(f"--server {shown(url)}: write http://HOST:PORT")
        self.servers = [Server(url, start_limit) for url in dict.fromkeys(urls)]
        self.client = client
        self.policy = policy
        self.max_in_flight = max_in_flight
        self.kind: ModelKind = kind
        self._waiters: list[asyncio.Future[None]] = []
        self._probes: set[asyncio.Task[None]] = set()
        self._broken: SteerLMError | None = None
        self._last_success = 0.0

    async def __aenter__(self) -> ServerPool:
        self._last_success = _now()
        for server in self.servers:
            self._probe(server)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for task in self._probes:
            task.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)

    async def announcement(self) -> Announcement:
        """The servers' announcement, as soon as one of them is ready.

        Raises:
            UnavailableError: If none is ready within ``policy.patience`` seconds.
            ConfigError: If two servers announce different models.
        """
        server = await self._acquire(set())
        self._release(server)
        return server.announcement or Announcement()

    async def call(self, send: Callable[[Server], Awaitable[T]]) -> T:
        """The result of ``send`` from the first server that gives one.

        Raises:
            RequestFailed: If the request is at fault or its attempts are used up.
            UnavailableError: If no server has answered for ``policy.patience`` seconds.
        """
        failed: set[Server] = set()
        async for attempt in self.policy.attempts_of():
            with attempt:
                return await self._call_somewhere(send, failed)
        raise AssertionError("the last attempt raises")

    async def _call_somewhere(self, send: Callable[[Server], Awaitable[T]], failed: set[Server]) -> T:
        while True:
            server = await self._acquire(failed)
            epoch = server.epoch
            try:
                result = await send(server)
            except RequestFailed as failure:
                self._note_failure(server, epoch, failure)
                if failure.fault in (Fault.BUSY, Fault.SERVER):
                    continue
                failed.add(server)
                raise
            else:
                self._note_success(server)
                return result
            finally:
                self._release(server)

    async def _acquire(self, avoid: set[Server]) -> Server:
        while True:
            if self._broken:
                raise self._broken
            now = _now()
            ready = [s for s in self.servers if s.ready]
            # A server that failed this request gets it again only if there is no other.
            wanted = [s for s in ready if s not in avoid] or ready
            free = [s for s in wanted if s.rests_until <= now and s.in_flight < int(s.limit)]
            if free:
                server = min(free, key=lambda s: s.in_flight / s.limit)
                server.in_flight += 1
                return server
            left = self._last_success + self.policy.patience - now
            if left <= 0 and not any(s.in_flight for s in self.servers):
                raise UnavailableError(self._why())
            wakes = [s.rests_until - now for s in wanted if s.rests_until > now]
            await self._changed(min([max(left, 0.01), *wakes]))

    def _release(self, server: Server) -> None:
        server.in_flight -= 1
        self._notify()

    def _note_success(self, server: Server) -> None:
        server.failures = 0
        server.limit = min(float(self.max_in_flight), server.limit + 1 / server.limit)
        self._last_success = _now()

    def _note_failure(self, server: Server, epoch: int, failure: RequestFailed) -> None:
        if failure.fault is Fault.REQUEST:
            # The server judged the request, so the server works.
            self._last_success = _now()
            return
        server.last_failure = failure.reason
        logger.debug("%s: %s", server.url, failure.reason)
        if epoch != server.epoch:
            return
        server.failures += 1
        if failure.fault is Fault.BUSY:
            self._rest(server, failure.retry_after)
        elif failure.fault is Fault.SERVER or server.failures >= FAILURES_TO_REST:
            self._rest(server, failure.retry_after)
            self._probe(server)

    def _rest(self, server: Server, seconds: float | None) -> None:
        server.epoch += 1
        server.limit = max(1.0, server.limit / 2)
        server.rests_until = _now() + (self.policy.pause(server.failures - 1) if seconds is None else seconds)

    def _probe(self, server: Server) -> None:
        server.ready = False
        task = asyncio.create_task(self._bring_back(server))
        self._probes.add(task)
        task.add_done_callback(self._probes.discard)

    async def _bring_back(self, server: Server) -> None:
        while not server.ready:
            await asyncio.sleep(max(0.0, server.rests_until - _now()))
            try:
                announcement = await read_announcement(server.url, self.client, self.policy, self.kind)
                self._check_same(server, announcement)
            except RequestFailed as failure:
                server.last_failure = failure.reason
                server.failures += 1
                self._rest(server, failure.retry_after)
                self._report_waiting(server)
            except SteerLMError as error:
                self._broken = error
                break
            else:
                server.announcement = announcement
                server.ready = True
        self._notify()

    def _report_waiting(self, server: Server) -> None:
        """In the log, at first and then from time to time: whoever reads it sees no server's own log."""
        if _now() - server.reported >= REPORT_SECONDS:
            server.reported = _now()
            left = max(self._last_success + self.policy.patience - _now(), 0)
            logger.warning("waiting for %s: %s (%.0f s of patience left)", server.url, server.last_failure, left)

    def _check_same(self, server: Server, announcement: Announcement) -> None:
        for other in self.servers:
            if other is not server and other.announcement and other.announcement.fingerprint != announcement.fingerprint:
                both = f"{server.url} serves {announcement.name}, {other.url} {other.announcement.name}"
                raise ConfigError(f"{both}; one file is labelled by one model")
        if server.announcement and server.announcement.fingerprint != announcement.fingerprint:
            raise ConfigError(f"{server.url} now serves {announcement.name}, before it was {server.announcement.name}")

    def _why(self) -> str:
        states = "; ".join(f"{s.url}: {s.last_failure}" for s in self.servers)
        return f"no server gave an answer for {self.policy.patience:g} s ({states})"

    def _notify(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _changed(self, timeout: float) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await asyncio.wait([waiter], timeout=timeout)


def _now() -> float:
    return asyncio.get_running_loop().time()
