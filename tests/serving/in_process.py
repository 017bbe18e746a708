"""A server's app in this process: everything but its sockets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from starlette.testclient import TestClient

from nemo_steerlm.core.labels import Label
from nemo_steerlm.inference.huggingface import HuggingFaceEngine
from nemo_steerlm.serving.app import create_app
from nemo_steerlm.serving.model import Model
from nemo_steerlm.serving.scheduler import Scheduler
from nemo_steerlm.serving.service import Service, Settings


def local(folder: Path, **options: int) -> Model:
    """The model in ``folder`` behind its scheduler."""
    return Scheduler(HuggingFaceEngine(folder, device="cpu", **options))


@contextlib.contextmanager
def served(model: Model, *, reader: Model | None = None, defaults: Label | None = None, **settings: object) -> Iterator[TestClient]:
    """A client of the app around ``model``, which ends with the block."""
    service = Service(model, Settings(name="writer", defaults=defaults or Label(), **settings))
    if reader is not None:
        service.reader = Service(reader, Settings(name="reader"))
    with TestClient(create_app(service), base_url="http://127.0.0.1") as client:
        yield client
