"""The factory of every HTTP client of this package: keys, certificates, proxies and limits are decided here."""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence

import httpx

from nemo_steerlm.core import environment

DIRECT: dict[str, None] = {"all://127.0.0.1": None, "all://localhost": None}
"""Addresses that are reached without the environment's proxy."""


def async_client(
    urls: Sequence[str], *, timeout: httpx.Timeout, key: str | None, keepalive: int | None = None, base_url: str = ""
) -> httpx.AsyncClient:
    """A client for ``urls`` with any number of connections.

    Args:
        urls: The servers it will talk to; any with ``https://`` makes it read the system's certificates.
        timeout: Limits in seconds per request.
        key: Bearer token sent with every request; None sends none. A server's own key must not reach another server, so there is no
            default: clients of users pass ``client_key()``.
        keepalive: Idle connections that stay open; None for any number.
        base_url: Prefix of relative request URLs.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=keepalive)
    mounts: dict[str, httpx.AsyncBaseTransport | None] = dict(DIRECT)
    return httpx.AsyncClient(
        timeout=timeout, limits=limits, headers=authorization(key), mounts=mounts, verify=certificates(urls), base_url=base_url
    )


def sync_client(url: str, *, timeout: httpx.Timeout, key: str | None) -> httpx.Client:
    """A blocking client for ``url``; ``key`` as for ``async_client``."""
    mounts: dict[str, httpx.BaseTransport | None] = dict(DIRECT)
    return httpx.Client(timeout=timeout, headers=authorization(key), mounts=mounts, verify=certificates([url]))


def certificates(urls: Sequence[str]) -> ssl.SSLContext:
    """The system's certificates, or none if no URL is encrypted: reading them takes longer than labelling a small file."""
    if any(url.startswith("https://") for url in urls):
        return ssl.create_default_context()
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def client_key() -> str | None:
    """The bearer token that the environment has for the user's servers (``STEERLM_API_KEY``), or None."""
    return os.environ.get(environment.API_KEY, "").strip() or None


def authorization(key: str | None) -> dict[str, str]:
    """The ``Authorization`` header for a bearer token; no header for None."""
    return {"Authorization": f"Bearer {key}"} if key else {}
