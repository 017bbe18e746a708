"""The page's routes. What they serve is a fixed list of files, read once: no path of a request becomes a path on disk."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files
from urllib.parse import parse_qs

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import RedirectResponse, Response

from nemo_steerlm.serving.page.session import Session, same_origin

PATH = "/page"

_TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
_INDEX, _LOGIN = "index.html", "login.html"
_SCRIPTS = ("answer", "api", "attributes", "chat", "compare", "controls", "dom", "main", "presets", "reading", "sampling", "support")
_FILES = ("page.css", *(f"{name}.js" for name in _SCRIPTS))

OPEN_PATHS = frozenset({"/", PATH, *(f"{PATH}/{name}" for name in ("", "key", *_FILES))})
"""Paths that need no token: the way to the login form, and files that hold nothing of the model."""

_HEADERS = {
    # The browser asks nobody but this server, runs nothing but its files, and makes no HTML of a string.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_FORM_BYTES = 8192


def router(session: Session | None) -> APIRouter:
    """The routes; ``session`` where the server has a token, which the page then asks for."""
    static = files("nemo_steerlm.serving.page") / "static"
    content = {name: (static / name).read_bytes() for name in (_INDEX, _LOGIN, *_FILES)}
    routes = APIRouter(include_in_schema=False)

    @routes.api_route("/", methods=["GET", "HEAD"])
    @routes.api_route(PATH, methods=["GET", "HEAD"])
    async def lead() -> Response:
        return RedirectResponse(f".{PATH}/", 307, _HEADERS)  # relative: a proxy may have put the server below a path

    @routes.api_route(f"{PATH}/", methods=["GET", "HEAD"])
    async def index(request: Request) -> Response:
        if session is None or session.admits(request.scope):
            return _page(content[_INDEX])
        return _page(content[_LOGIN], 401)

    for name in _FILES:
        answer = Response(content[name], 200, _HEADERS, _TYPES[name.rpartition(".")[2]])
        routes.add_api_route(f"{PATH}/{name}", _always(answer), methods=["GET", "HEAD"])

    if session is not None:

        @routes.post(f"{PATH}/key")
        async def unlock(request: Request) -> Response:
            given = await _given_key(request)
            if not same_origin(request.scope) or not session.accepts(given):
                return _page(content[_LOGIN].replace(b"<p hidden", b"<p"), 401)
            response = RedirectResponse("./", 303, _HEADERS)
            session.open(response, secure=request.url.scheme == "https")
            return response

    return routes


def _page(content: bytes, status: int = 200) -> Response:
    return Response(content, status, _HEADERS, _TYPES["html"])


def _always(answer: Response) -> Callable[[], Awaitable[Response]]:
    async def serve() -> Response:
        return answer

    return serve


async def _given_key(request: Request) -> str:
    """What the form's field says; nothing where the body is no such form."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _FORM_BYTES:
            raise HTTPException(413, f"the form has {_FORM_BYTES} bytes at most")
    try:
        return parse_qs(body.decode("utf-8", "replace"), max_num_fields=16).get("key", [""])[0]
    except ValueError:
        return ""
