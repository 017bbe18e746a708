"""A proxy in front of a real API server that answers some requests with an error, cuts watches, and counts writes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import aiohttp.web
import yaml

Fault = Callable[[str, str, int], int | None]
"""(method, path, number of the request) to the status to answer with, or None to let it through."""


class FaultProxy:
    """Speaks plain HTTP on 127.0.0.1 and forwards each request, token included. Runs in a thread of its own."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        content = yaml.safe_load(kubeconfig.read_text())
        cluster = content["clusters"][0]["cluster"]
        self._server = cluster["server"]
        self._tls = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        self.fault: Fault = lambda method, path, number: None
        self.after_write: Callable[[int], None] = lambda number: None
        self.watch_events: int | None = None
        """Watches are cut after so many events."""
        self.requests = self.writes = self.faults = 0
        self._open: list[asyncio.Transport] = []
        self._gap: asyncio.Event | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(20)
        content["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{port}"}
        self.kubeconfig = folder / "proxied.kubeconfig"
        self.kubeconfig.write_text(yaml.safe_dump(content))

    async def _start(self) -> int:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self._tls, limit=0), auto_decompress=False)
        application = aiohttp.web.Application()
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = aiohttp.web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = aiohttp.web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return int(self._runner.addresses[0][1])

    def close(self) -> None:
        """End the thread and every connection."""

        async def end() -> None:
            await self._runner.cleanup()
            await self._session.close()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)

    @contextlib.contextmanager
    def expired(self, *, in_stream: bool) -> Iterator[None]:
        """Cut all watches, and answer those asked for meanwhile at the end: 410 Gone, as a status or as the stream's first event."""
        self._in_stream = in_stream

        async def begin() -> None:
            self._gap = asyncio.Event()
            for transport in self._open:
                transport.close()

        async def end() -> None:
            if self._gap:
                self._gap.set()
            self._gap = None

        asyncio.run_coroutine_threadsafe(begin(), self._loop).result(20)
        yield
        asyncio.run_coroutine_threadsafe(end(), self._loop).result(20)

    async def _handle(self, request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        self.requests += 1
        if self._gap and "watch=true" in request.path_qs:
            await self._gap.wait()
            self.faults += 1
            said = failure(410, "Expired")
            return (
                aiohttp.web.json_response({"type": "ERROR", "object": said})
                if self._in_stream
                else aiohttp.web.json_response(said, status=410)
            )
        if status := self.fault(request.method, request.path_qs, self.requests):
            self.faults += 1
            return aiohttp.web.json_response(failure(status, "Fault"), status=status)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in ("host", "content-length", "transfer-encoding")}
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._session.request(
            request.method, f"{self._server}{request.path_qs}", data=await request.read() or None, headers=headers, timeout=timeout
        ) as answer:
            if "watch=true" in request.path_qs:
                return await self._stream(request, answer)
            body = await answer.read()
            if request.method != "GET":
                self.writes += 1
                await asyncio.get_running_loop().run_in_executor(None, self.after_write, self.writes)
            kept = {k: v for k, v in answer.headers.items() if k.lower() in ("content-type", "content-encoding")}
            return aiohttp.web.Response(status=answer.status, body=body, headers=kept)

    async def _stream(self, request: aiohttp.web.Request, answer: aiohttp.ClientResponse) -> aiohttp.web.StreamResponse:
        response = aiohttp.web.StreamResponse(status=answer.status, headers={"Content-Type": "application/json"})
        await response.prepare(request)
        left = self.watch_events
        transport = request.transport
        assert transport
        self._open.append(transport)
        try:
            async for line in answer.content:
                await response.write(line)
                if left is not None and (left := left - 1) <= 0:
                    transport.close()  # in the middle of the stream, without its end
                    break
        finally:
            self._open.remove(transport)
        return response


def failure(code: int, reason: str) -> dict[str, Any]:
    """The Status object that goes with an error."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": "on purpose",
    }
