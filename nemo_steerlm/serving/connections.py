"""One connection of a client: it is heard for a limited time, and there are only so many of them."""

from __future__ import annotations

import asyncio
import json
import logging
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from nemo_steerlm.serving.errors import HTTP_CODES, RETRY_AFTER, error_body

logger = logging.getLogger(__name__)


class BoundedConnection(H11Protocol):
    """Uvicorn's connection, closed if its request's head does not come in time, or if somebody else needs its place more.

    ``bounded`` makes the class with a server's limits.
    """

    most: int
    """Connections at once. One more takes the place of the one that has sent no whole request for the longest time."""
    seconds: float
    """For a request's head, from the connection or its first byte on."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._started = self.loop.time()
        if len(self.connections) > self.most and not self._take_place():
            self._refuse(503, f"{self.most} requests are being answered already")
            return
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        super().data_received(data)
        if self.answering:
            self._cancel_head_timer()
        elif self._head_timer is None and self.timeout_keep_alive_task is None:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._cancel_head_timer()
        super().connection_lost(exc)

    @property
    def answering(self) -> bool:
        """Whether a request's head has come, and not all of its answer has gone."""
        cycle: Any = self.cycle  # None before the first request, whatever its annotation says
        return cycle is not None and not cycle.response_complete

    @property
    def whole(self) -> bool:
        """Whether all of a request has come, and not all of its answer has gone."""
        return self.answering and not self.cycle.more_body

    def _take_place(self) -> bool:
        idle = [other for other in self.connections if other is not self and isinstance(other, BoundedConnection) and not other.whole]
        if not idle:
            return False
        min(idle, key=lambda other: other._started).drop()  # noqa: SLF001  of its own class
        return True

    def drop(self) -> None:
        """End the connection at once, whatever is still to be sent."""
        self.connections.discard(self)
        self.transport.abort()

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(self.seconds, self._refuse, 408, f"no request within {self.seconds:g} s")

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: int, message: str) -> None:
        if self.transport.is_closing():
            return
        code = HTTP_CODES[status]
        body = json.dumps(error_body(status, code, message)).encode()
        head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "content-type: application/json", f"content-length: {len(body)}"]
        if status in RETRY_AFTER:
            head.append(f"retry-after: {RETRY_AFTER[status]}")
        self.transport.write("\r\n".join([*head, "connection: close", "", ""]).encode() + body)
        self.transport.close()


def bounded(most: int, seconds: float) -> type[BoundedConnection]:
    """The connections of a server that has at most ``most`` of them and waits ``seconds`` for a request's head."""
    limits: dict[str, Any] = {"most": most, "seconds": seconds}
    return type("BoundedConnection", (BoundedConnection,), limits)
