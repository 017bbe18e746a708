"""The page's routes. What they serve is a fixed list of files, read once: no path of a request becomes a path on disk."""

from __future__ import annotations

from importlib.resources import files
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from nemo_steerlm.serving.page.session import Session, same_origin

PATH = "/page"

_TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
_INDEX, _LOGIN = "index.html", "login.html"
_FILES = (
    *("page.css", "answer.js", "api.js", "attributes.js", "chat.js", "compare.js", "controls.js", "dom.js", "main.js", "presets.js", "reading.js"),
    "sampling.js",
)

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

    def file(name: str, status: int = 200) -> Response:
        return Response(content[name], status, _HEADERS, _TYPES[name.rpartition(".")[2]])

    @routes.api_route("/", methods=["GET", "HEAD"])
    @routes.api_route(PATH, methods=["GET", "HEAD"])
    async def lead() -> Response:
        return RedirectResponse(f".{PATH}/", 307, _HEADERS)  # relative: a proxy may have put the server below a path

    @routes.api_route(f"{PATH}/", methods=["GET", "HEAD"])
    async def index(request: Request) -> Response:
        return file(_INDEX) if session is None or session.admits(request.scope) else file(_LOGIN, 401)

    def add(name: str) -> None:
        async def serve() -> Response:
            return file(name)

        routes.add_api_route(f"{PATH}/{name}", serve, methods=["GET", "HEAD"], name=name)

    for name in _FILES:
        add(name)

    if session is not None:

        @routes.post(f"{PATH}/key")
        async def unlock(request: Request) -> Response:
            body = bytearray()
            async for chunk in request.stream():
                body += chunk
                if len(body) > _FORM_BYTES:
                    return file(_LOGIN, 413)
            try:
                given = parse_qs(body.decode("utf-8", "replace"), max_num_fields=16).get("key", [""])[0]
            except ValueError:
                given = ""
            if not same_origin(request.scope) or not session.accepts(given):
                refused = content[_LOGIN].replace(b"<p hidden", b"<p")
                return Response(refused, 401, _HEADERS, _TYPES["html"])
            response = RedirectResponse("./", 303, _HEADERS)
            session.open(response, secure=request.url.scheme == "https")
            return response

    return routes
