"""ASGI middleware in front of every route: framing, body size, bearer token, request log and latency. Streams pass through untouched."""

from __future__ import annotations

import json
import logging
import secrets
import time
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nemo_steerlm.serving.logs import ACCESS_LOGGER
from nemo_steerlm.serving.page.routes import OPEN_PATHS as PAGE_PATHS
from nemo_steerlm.serving.page.session import Session
from nemo_steerlm.serving.service import Service

access_log = logging.getLogger(ACCESS_LOGGER)

_OPEN = ("/health/live", "/health/ready")
"""Paths that need no token: a probe has none."""


class BodyTooLargeError(HTTPException):
    """A body exceeds the limit. Raised into the route that reads it."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"bodies may have {limit} bytes")


class FramingMiddleware:
    """The outermost middleware: refuses a request whose length is ambiguous, and closes its connection.

    RFC 9112 section 6.1 (request smuggling): a proxy may go by ``Content-Length`` and the server by ``Transfer-Encoding``. What one of
    them reads as the rest of a body is then a request of its own to the other. h11 accepts such requests, so they are refused here.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        if scope["type"] == "http":
            names = {name.lower() for name, _ in scope["headers"]}
            if b"transfer-encoding" in names and (b"content-length" in names or scope["http_version"] == "1.0"):
                await _respond(send, Refusal(400, "ambiguous_length", "send Content-Length or (in HTTP/1.1) Transfer-Encoding, not both"))
                return
        await self._app(scope, receive, send)


class Refusal(NamedTuple):
    """An error response of the middleware itself."""

    status: int
    code: str
    message: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


def bears(authorization: bytes, token: str) -> bool:
    """Whether an ``Authorization`` header has exactly ``token``. The scheme's name is in any case (RFC 9110 section 11.1)."""
    scheme, _, given = authorization.partition(b" ")
    return scheme.lower() == b"bearer" and secrets.compare_digest(given.strip(b" \t"), token.encode())


def limited(receive: Receive, limit: int) -> Receive:
    """Wrap ``receive`` so that it raises BodyTooLargeError once a body exceeds ``limit`` bytes."""
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > limit:
            raise BodyTooLargeError(limit)
        return message

    return counted


class RequestMiddleware:
    """Checks token and body size, counts requests in flight, and records each request in log and metrics."""

    def __init__(self, app: ASGIApp, *, service: Service, session: Session | None = None) -> None:
        """``session``: the page's, whose cookie is worth the token to requests of this server's own pages."""
        self._app = app
        self._session = session
        self._open = {*_OPEN, *(PAGE_PATHS if session else ())}
        self._service = service
        self._settings = service.settings
        self._metrics = service.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._service.in_flight += 1
        started = time.monotonic()
        status = 500
        read = bytearray()

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        counted = limited(receive, self._settings.max_body_bytes)

        async def watched_receive() -> Message:
            message = await counted()
            if self._settings.log_prompts:
                read.extend(message.get("body", b""))
            return message

        try:
            if refused := self._refusal(scope):
                await _respond(watched_send, refused)
                return
            await self._app(scope, watched_receive, watched_send)
        finally:
            self._service.in_flight -= 1
            self._record(scope, status, time.monotonic() - started, bytes(read))

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = dict(scope["headers"])
        key = self._settings.api_key
        asked = key is not None and scope["path"] not in self._open and scope["method"] != "OPTIONS"
        known = self._session is not None and self._session.admits(scope)
        if asked and not known and not bears(headers.get(b"authorization", b""), key or ""):
            return Refusal(401, "unauthorized", "send the header Authorization: Bearer KEY", ((b"www-authenticate", b"Bearer"),))
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._settings.max_body_bytes:
            return Refusal(413, "too_large", f"bodies may have {self._settings.max_body_bytes} bytes")
        return None

    def _record(self, scope: Scope, status: int, seconds: float, body: bytes) -> None:
        route = scope.get("route")
        path = getattr(route, "path", None) or "other"
        self._metrics.latency.labels(path, str(status)).observe(seconds)
        entry = {"event": "request", "method": scope["method"], "path": path, "status": status, "seconds": round(seconds, 4)}
        if self._settings.log_prompts:
            entry["body"] = body.decode("utf-8", "replace")
        access_log.info("%s", json.dumps(entry, ensure_ascii=False))


async def _respond(send: Send, refusal: Refusal) -> None:
    body = json.dumps({"error": {"code": refusal.code, "message": refusal.message}}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *refusal.headers,
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
