"""ASGI middleware in front of every route: framing, body size, bearer token, request log and latency. Streams pass through untouched."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
import uuid
from typing import NamedTuple

import anyio
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nemo_steerlm.serving.errors import ClientGoneError, TimedOutError, error_body, status_of
from nemo_steerlm.serving.logs import ACCESS_LOGGER, REQUEST_ID, timestamp
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
                await _respond(
                    send, ErrorResponse(400, "ambiguous_length", "send Content-Length or (in HTTP/1.1) Transfer-Encoding, not both")
                )
                return
        await self._app(scope, receive, send)


class ErrorResponse(NamedTuple):
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


def in_time(receive: Receive, service: Service) -> Receive:
    """``receive``, which raises an HTTPException where a body does not come in time, or its sender is gone."""
    deadline = anyio.current_time() + service.settings.read_timeout
    whole = False

    async def timed() -> Message:
        nonlocal whole
        if whole:
            return await receive()
        message: Message | None = None
        with anyio.CancelScope(deadline=deadline) as scope, service.at_end(scope.cancel):
            message = await receive()
        if message is None:
            error = (
                service.draining_error() if service.ending else TimedOutError(f"no whole body within {service.settings.read_timeout:g} s")
            )
            raise HTTPException(status_of(error), str(error)) from error
        if message["type"] == "http.disconnect":
            gone = ClientGoneError("the client hung up before its request was whole")
            raise HTTPException(status_of(gone), str(gone)) from gone
        whole = not message.get("more_body", False)
        return message

    return timed


def _request_id(scope: Scope) -> str:
    """The client's own, if it is short and plain, or a new one."""
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    return given if re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", given) else uuid.uuid4().hex


def _plain(scope: Scope) -> Scope:
    """The request as its route knows it: HEAD is GET (the server sends no body), and ``/v1/models/`` is ``/v1/models``."""
    path = scope["path"]
    if len(path) > 1 and path.endswith("/") and not path.startswith("/page"):
        path = path.rstrip("/") or "/"
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    return {**scope, "path": path, "method": method}


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
        scope = _plain(scope)
        request_id = _request_id(scope)
        REQUEST_ID.set(request_id)
        self._service.in_flight += 1
        started = time.monotonic()
        status = 500
        recorded = False
        read = bytearray()

        def record() -> None:
            nonlocal recorded
            if not recorded:
                recorded = True
                self._record(scope, status, time.monotonic() - started, bytes(read), request_id)

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", request_id.encode())]}
            elif not message.get("more_body", False):
                record()  # before the end is sent: who has the whole answer finds it in metrics and log
            await send(message)

        counted = limited(in_time(receive, self._service), self._settings.max_body_bytes)

        async def watched_receive() -> Message:
            message = await counted()
            if self._settings.log_prompts:
                read.extend(message.get("body", b""))
            return message

        try:
            if refused := self._refused(scope):
                await _respond(watched_send, refused)
                return
            await self._app(scope, watched_receive, watched_send)
        finally:
            self._service.in_flight -= 1
            record()

    def _refused(self, scope: Scope) -> ErrorResponse | None:
        headers = dict(scope["headers"])
        key = self._settings.api_key
        asked = key is not None and scope["path"] not in self._open
        known = self._session is not None and self._session.admits(scope)
        if asked and not known and not bears(headers.get(b"authorization", b""), key or ""):
            return ErrorResponse(401, "unauthorized", "send the header Authorization: Bearer KEY", ((b"www-authenticate", b"Bearer"),))
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._settings.max_body_bytes:
            return ErrorResponse(413, "too_large", f"bodies may have {self._settings.max_body_bytes} bytes")
        return None

    def _record(self, scope: Scope, status: int, seconds: float, body: bytes, request_id: str) -> None:
        route = scope.get("route")
        path = getattr(route, "path", None) or "other"
        self._metrics.latency.labels(path, str(status)).observe(seconds)
        entry = {"event": "request", "time": timestamp(time.time()), "request_id": request_id, "method": scope["method"], "path": path}
        entry |= {"status": status, "seconds": round(seconds, 4)}
        if self._settings.log_prompts:
            entry["body"] = body.decode("utf-8", "replace")
        access_log.info("%s", json.dumps(entry, ensure_ascii=False))


async def _respond(send: Send, response: ErrorResponse) -> None:
    body = json.dumps(error_body(response.status, response.code, response.message)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *response.headers,
    ]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
