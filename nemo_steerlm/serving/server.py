"""A server process: one socket, one app, and an orderly end on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import logging
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

import uvicorn

from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.serving.app import create_app
from nemo_steerlm.serving.connections import BoundedConnection, bounded
from nemo_steerlm.serving.logs import configure_logs
from nemo_steerlm.serving.service import Service

logger = logging.getLogger(__name__)

_LAST_SECONDS = 2.0
"""In which those whose answers are not ready are told so."""
_OWN_FILES = 128
"""Open files that are no connections: the model's, the log, those of libraries."""


class _Listener(socket.socket):
    """A listening socket on which a connection waits while no file is left for it. asyncio tries, and logs, a thousand times in a row."""

    _full = False

    def accept(self) -> tuple[socket.socket, Any]:
        """See socket.socket."""
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            if not self._full:
                logger.warning("no file is left for another connection; it waits until one is closed (ulimit -n)")
            self._full = True
            raise BlockingIOError(error.errno, error.strerror) from error


class _Server(uvicorn.Server):
    """Uvicorn without its signal handler, which raises the signal again, so that the process would not exit with 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int, api_key: str | None, *, insecure: bool) -> socket.socket:
    """Configure the log and bind the server's address.

    Raises:
        UsageError: If the address cannot be bound, or other machines reach it and neither ``api_key`` nor ``insecure`` is given.
    """
    configure_logs()
    listener = bind(host, port)
    require_token(listener, api_key, insecure=insecure)
    return listener


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free one.

    Raises:
        UsageError: If the address cannot be bound.
    """
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        made = socket.create_server(infos[0][4][:2], family=infos[0][0], backlog=1024)
        server = _Listener(made.family, made.type, made.proto, fileno=made.detach())
        # asyncio sets it on sockets that name their protocol, which accepted ones do not: an answer's body waits 40 ms behind its head.
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return server


def require_token(listener: socket.socket, api_key: str | None, *, insecure: bool) -> None:
    """Refuse to listen for other machines without a token; with ``insecure`` warn in the log instead.

    Raises:
        UsageError: If the address is no loopback address and there is neither a token nor ``insecure``.
    """
    host = listener.getsockname()[0]
    if api_key is not None or ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        return
    if not insecure:
        raise UsageError(
            f"listening on {host} without a token lets in everybody who reaches this machine: put one in STEERLM_API_KEY, "
            "listen on 127.0.0.1, or say that it is meant with --insecure (insecure=True with NeMo's flags)"
        )
    logger.warning("insecure: listening on %s without a token, everybody who reaches it is answered", host)


def serve(service: Service, listener: socket.socket, *, page: bool = False, drain_seconds: float = 30.0) -> None:
    """Serve until SIGTERM or SIGINT; then finish requests in flight, for ``drain_seconds`` at most.

    Prints one JSON line on stdout once the server answers. While it drains, it is live but not ready and answers new requests with 503.
    """
    app = create_app(service, page=page)
    connection = bounded(_most_connections(service.settings.max_connections), service.settings.read_timeout)
    config = uvicorn.Config(
        app,
        http=connection,
        ws="none",
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=2,
        server_header=False,
    )
    server = _Server(config)
    asyncio.run(_serve(server, service, listener, drain_seconds))


def _most_connections(wanted: int) -> int:
    """``wanted``, or as many as this process may have open files: where none is left, none can be accepted either."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if files == resource.RLIM_INFINITY else max(min(wanted, files - _OWN_FILES), 1)
    if most < wanted:
        logger.warning("at most %d connections at once: this process may have %d open files (ulimit -n)", most, files)
    return most


async def _serve(server: _Server, service: Service, listener: socket.socket, drain_seconds: float) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():  # noqa: ASYNC110  uvicorn has a flag, no event
        await asyncio.sleep(0.005)
    if not serving.done():
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        line = {"steerlm": "serving", "url": f"http://{shown}:{port}", "model": service.settings.name, "kind": service.model.info.kind}
        print(json.dumps(line), flush=True)  # noqa: T201  the parent process waits for this line
        if sys.stderr.isatty():
            print(f"Open {line['url']} in a browser. Ctrl-C stops the server.", file=sys.stderr)  # noqa: T201  for people
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    service.drain()
    deadline = loop.time() + drain_seconds
    while service.in_flight and loop.time() < deadline:  # noqa: ASYNC110  a counter, polled only while the server drains
        await asyncio.sleep(0.02)
    stopping.cancel()
    service.end()
    deadline = loop.time() + _LAST_SECONDS
    while service.in_flight and loop.time() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    for connection in list(server.server_state.connections):
        if isinstance(connection, BoundedConnection) and connection.answering:
            connection.drop()  # its client does not read
    server.should_exit = True
    await serving
