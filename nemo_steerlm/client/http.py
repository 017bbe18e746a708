"""The HTTP clients of this package: credentials, certificates, proxies and limits are decided here."""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence

import httpx

from nemo_steerlm.core import environment

DIRECT: dict[str, None] = {"all://127.0.0.1": None, "all://localhost": None}
"""Addresses that are reached without the environment's proxy."""


def async_client(urls: Sequence[str], *, timeout: httpx.Timeout, keepalive: int | None = None) -> httpx.AsyncClient:
    """A client for ``urls`` with any number of connections, of which ``keepalive`` stay open while idle."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=keepalive)
    mounts: dict[str, httpx.AsyncBaseTransport | None] = dict(DIRECT)
    return httpx.AsyncClient(timeout=timeout, limits=limits, headers=credentials(), mounts=mounts, verify=certificates(urls))


def sync_client(url: str, *, timeout: httpx.Timeout) -> httpx.Client:
    """A blocking client for ``url``."""
    mounts: dict[str, httpx.BaseTransport | None] = dict(DIRECT)
    return httpx.Client(timeout=timeout, headers=credentials(), mounts=mounts, verify=certificates([url]))


def certificates(urls: Sequence[str]) -> ssl.SSLContext:
    """The system's certificates, or none if no URL is encrypted: reading them takes longer than labelling a small file."""
    if any(url.startswith("https://") for url in urls):
        return ssl.create_default_context()
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def credentials() -> dict[str, str]:
    """The ``Authorization`` header with the servers' key, if ``STEERLM_API_KEY`` has one."""
    key = os.environ.get(environment.API_KEY, "").strip()
    return {"Authorization": f"Bearer {key}"} if key else {}
