"""The cookie that stands for the server's token in a browser, and what it is worth: requests of the server's own pages."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope


class Session:
    """Who has given the token of one server."""

    def __init__(self, api_key: str) -> None:
        self._key = api_key.encode()
        # Cookies know no ports: two servers on one machine must not take each other's.
        self._name = "steerlm_" + self._digest("name")[:8]
        self._value = self._digest("pass")

    def accepts(self, token: str) -> bool:
        """Whether ``token`` is the server's."""
        return secrets.compare_digest(token.encode("utf-8", "replace"), self._key)

    def open(self, response: Response, *, secure: bool) -> None:
        """Have the browser show the cookie from now on; over HTTPS only where it is ``secure``."""
        response.set_cookie(self._name, self._value, httponly=True, samesite="strict", secure=secure)

    def admits(self, scope: Scope) -> bool:
        """Whether an HTTP request shows the cookie and comes from a page of this server."""
        headers = Headers(scope=scope)
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self._name)
        except CookieError:
            return False
        return cookie is not None and secrets.compare_digest(cookie.value.encode(), self._value.encode()) and same_origin(scope)

    def _digest(self, purpose: str) -> str:
        return hmac.new(self._key, f"steerlm page {purpose}".encode(), hashlib.sha256).hexdigest()


def same_origin(scope: Scope) -> bool:
    """Whether a browser says that this server's own page, or the person at the address bar, made an HTTP request.

    ``SameSite`` alone keeps no other port of this machine out: to a browser that is the same site. So the request must say where it comes
    from: ``Sec-Fetch-Site``, which browsers send to HTTPS and loopback addresses, or else ``Origin``, which they send with every method
    that may change something.
    """
    headers = Headers(scope=scope)
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    if origin is None:
        return scope["method"] in ("GET", "HEAD")
    return origin == f"{scope.get('scheme', 'http')}://{headers.get('host', '')}"
