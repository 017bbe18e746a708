"""A server's app in this process: with a client of the app itself, or behind a socket."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.testclient import TestClient

from nemo_steerlm.core.labels import Label
from nemo_steerlm.inference.huggingface import HuggingFaceEngine
from nemo_steerlm.inference.registry import EngineOptions
from nemo_steerlm.serving.app import create_app
from nemo_steerlm.serving.model import Model
from nemo_steerlm.serving.scheduler import Scheduler
from nemo_steerlm.serving.service import Service, Settings


def http_scope(method: str, path: str) -> dict[str, Any]:
    """What a server tells an app of a request with a JSON body."""
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "http_version": "1.1"}
    headers = [(b"content-type", b"application/json")]
    return scope | {"headers": headers, "client": ("127.0.0.1", 1), "server": ("here", 80), "scheme": "http"}


def local(folder: Path, **options: int) -> Model:
    """The model in ``folder`` behind its scheduler."""
    return Scheduler(HuggingFaceEngine(folder, EngineOptions(device="cpu", **options)))


@contextlib.contextmanager
def served(model: Model, *, reader: Model | None = None, defaults: Label | None = None, **settings: object) -> Iterator[TestClient]:
    """A client of the app around ``model``, which ends with the block."""
    service = Service(model, Settings(name="writer", defaults=defaults or Label(), **settings))
    if reader is not None:
        service.reader = Service(reader, Settings(name="reader"))
    with TestClient(create_app(service), base_url="http://127.0.0.1") as client:
        yield client


@contextlib.contextmanager
def listening(model: Model, *, reader: Model | None = None) -> Iterator[str]:
    """The same behind a real socket of this process. Yields its address."""
    service = Service(model, Settings(name="writer"))
    if reader is not None:
        service.reader = Service(reader, Settings(name="reader"))
    server = uvicorn.Server(uvicorn.Config(create_app(service), host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
