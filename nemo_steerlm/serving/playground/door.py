"""The way to the page: ``/`` leads to ``/page/``, which is built when a browser first asks for it and opens with the server's token."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import html
import importlib
import logging
import secrets
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nemo_steerlm.serving.limits import limited
from nemo_steerlm.serving.playground.asking import Asking

logger = logging.getLogger(__name__)

PATH = "/page"

_ONLY_THIS_SERVER = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; form-action 'self'"
"""Whatever a model writes or a library's new version wants, the browser asks nobody else."""

_SHUT = ("/gradio_api/upload", "/gradio_api/proxy=", "/gradio_api/file=", "/gradio_api/stream/", "/login", "/dev/")
"""Gradio's routes that the page does not need: files from anybody, and requests to elsewhere."""

_FORM_BYTES = 8192


class Door:
    """Middleware around the whole app: requests for the page go to the page, all others on."""

    def __init__(self, app: ASGIApp, *, asking: Asking) -> None:
        self._app = app
        self._asking = asking
        self._settings = asking.service.settings
        self._page: ASGIApp | None = None
        self._building = asyncio.Lock()
        key = (self._settings.api_key or "").encode()
        # Cookies know no ports: two servers on one machine must not take each other's.
        self._cookie = "steerlm_" + _digest(key, "name")[:8]
        self._pass = _digest(key, "pass")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        path = scope.get("path", "")
        if scope["type"] == "http" and path in ("/", PATH) and scope["method"] in ("GET", "HEAD"):
            await RedirectResponse(f".{PATH}/", 307)(scope, receive, send)
        elif path.startswith(f"{PATH}/") and scope["type"] == "http":
            await self._enter(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        receive = limited(receive, self._settings.max_body_bytes)
        if self._settings.api_key is not None:
            request = Request(scope, receive)
            if scope["path"] == f"{PATH}/key" and scope["method"] == "POST":
                await (await self._unlock(request))(scope, receive, send)
                return
            if not self._unlocked(request):
                await self._locked(request)(scope, receive, send)
                return
        if scope["path"].removeprefix(PATH).startswith(_SHUT):
            await _refusal(404, "not_found", "the page has no such part")(scope, receive, send)
            return
        try:
            page = await self._built()
        except ImportError as error:
            logger.exception("the page could not be built")
            await _refusal(503, "no_page", f"the page could not be built ({error})")(scope, receive, send)
            return
        await page(scope, receive, _guarded(send))

    def _unlocked(self, request: Request) -> bool:
        try:
            cookie = SimpleCookie(request.headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return False
        return cookie is not None and secrets.compare_digest(cookie.value.encode(), self._pass.encode())

    def _locked(self, request: Request) -> Response:
        if request.url.path == f"{PATH}/" and request.method == "GET":
            return HTMLResponse(_form(self._settings.name), 401)
        return _refusal(401, "unauthorized", "give the server's token on the page first")

    async def _unlock(self, request: Request) -> Response:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > _FORM_BYTES:
                break
        given = parse_qs(body[:_FORM_BYTES].decode("utf-8", "replace"), max_num_fields=16).get("key", [""])[0]
        if not secrets.compare_digest(given.encode(), (self._settings.api_key or "").encode()):
            return HTMLResponse(_form(self._settings.name, "This is not the server's token."), 401)
        response = RedirectResponse("./", 303)
        response.set_cookie(self._cookie, self._pass, path=f"{PATH}/", httponly=True, samesite="strict")
        return response

    async def _built(self) -> ASGIApp:
        async with self._building:
            if self._page is None:
                # Seconds of imports: elsewhere, while the server goes on.
                build: Callable[[Asking, str], contextlib.AbstractAsyncContextManager[ASGIApp]] = (
                    await run_in_threadpool(importlib.import_module, "nemo_steerlm.serving.playground.page")
                ).running
                self._page = await build(self._asking, PATH).__aenter__()
            return self._page


def _digest(key: bytes, purpose: str) -> str:
    return hmac.new(key, f"steerlm page {purpose}".encode(), hashlib.sha256).hexdigest()


def _refusal(status: int, code: str, message: str) -> Response:
    return JSONResponse({"error": {"code": code, "message": message}}, status)


def _guarded(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Content-Security-Policy"] = _ONLY_THIS_SERVER
            headers["Referrer-Policy"] = "no-referrer"
        await send(message)

    return sent


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 24rem; margin: 4rem auto; padding: 0 1rem; color: #222; background: #fff }
input, button { font: inherit; width: 100%; box-sizing: border-box; padding: .5rem; margin: .3rem 0 } p[role] { color: #b00 }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818 } p[role] { color: #f88 } }
"""


def _form(name: str, problem: str = "") -> str:
    told = f'<p role="alert">{html.escape(problem)}</p>' if problem else ""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(name)}</title><style>{_STYLE}</style><h1>{html.escape(name)}</h1>{told}"
        '<form method="post" action="key"><label for="key">This server asks for its token (--api-key).</label>'
        '<input id="key" name="key" type="password" autocomplete="current-password" autofocus required><button>Open</button></form></html>'
    )
