"""From a model's path to a running server: loads the model into an engine of this process, or connects to the server that has it."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from nemo_steerlm.core import environment
from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.core.labels import Label
from nemo_steerlm.inference.loading import load_engine
from nemo_steerlm.inference.registry import EngineOptions
from nemo_steerlm.serving.model import Model
from nemo_steerlm.serving.remote import RemoteModel
from nemo_steerlm.serving.remote_reader import RemoteReader
from nemo_steerlm.serving.scheduler import Scheduler
from nemo_steerlm.serving.server import serve
from nemo_steerlm.serving.service import Service, Settings

logger = logging.getLogger(__name__)


def local_model(folder: Path, options: EngineOptions, *, engine: str = "embedded", max_waiting: int = 1024) -> Model:
    """The model at ``folder`` in an engine of this process, behind a queue of ``max_waiting`` rows. Raises what ``load_engine`` does."""
    return Scheduler(load_engine(folder, options, engine=engine), max_waiting=max_waiting)


def remote_model(folder: Path, url: str, *, max_waiting: int = 1024, max_model_len: int | None = None, patience: float = 0.0) -> Model:
    """The model at ``folder``, whose weights another server has. That server's key is in ``STEERLM_UPSTREAM_KEY``.

    Args:
        folder: The exported model; its weights are not read.
        url: ``http://HOST:PORT`` of the server.
        max_waiting: Requests that may wait before new ones are refused.
        max_model_len: Tokens of prompt and answer together; see ``ModelInfo.served_length``.
        patience: Seconds until the server must answer.

    Raises:
        UsageError: If ``url`` is empty or no address, or the server takes fewer tokens.
        UnavailableError: If nothing answers there in time.
        ConfigError: If the server refuses the key or does not answer with token ids.
    """
    if not url:
        raise UsageError("--engine openai needs --upstream http://HOST:PORT")
    key = os.environ.get(environment.UPSTREAM_KEY)
    return RemoteModel(folder, url, api_key=key, max_waiting=max_waiting, max_model_len=max_model_len, patience=patience)


def reader_adder(reader: str, api_key: str, beside: Path | None, options: EngineOptions, *, engine: str) -> Callable[[Service], None]:
    """What gives the service of a steer model a value model that reads for it.

    Args:
        reader: The value model's folder, or the ``http://`` address of its server; empty for ``beside``.
        api_key: The token of that server; empty for none.
        beside: A value model that nobody asked for by name: it is loaded if it fits into the free memory.
        options: How an engine of this process runs it.
        engine: That engine's name.

    Returns:
        A function for ``run_server``, to be called when the service's own model is loaded. It leaves a value model's service alone.

    Raises:
        UsageError: If ``reader`` is a folder that does not exist. The returned function: if it is no value model.
    """
    remote = RemoteReader(reader, api_key=api_key or None) if reader.startswith(("http://", "https://")) else None
    if reader and remote is None and not Path(reader).exists():
        raise UsageError(f"--reader {reader}: no such folder; give a value model's folder, or http://HOST:PORT of its server")
    folder = Path(reader) if reader else beside

    def add(service: Service) -> None:
        if service.scores:
            return
        if remote:
            service.remote_reader = remote
        elif folder and (reader or _fits(folder, options)):
            settings = msgspec.structs.replace(service.settings, name=f"{service.settings.name}-reader", defaults=Label())
            service.reader = Service(local_model(folder, options, engine=engine), settings)
            if not service.reader.scores:
                raise UsageError(f"--reader {folder}: this is a steer model, it writes; give a value model")

    return add


def _fits(folder: Path, options: EngineOptions) -> bool:
    """Whether there is memory for another model; says in the log if there is not."""
    from nemo_steerlm.inference.memory import missing_memory  # imports torch, which remote models do without

    missing = missing_memory(folder, options.device)
    if missing:
        logger.warning(
            "the page does not read: no memory for %s as well (%s); serve it elsewhere and give its URL as --reader", folder, missing
        )
    return not missing


def run_server(
    load: Callable[[], Model],
    settings: Settings,
    listener: socket.socket,
    *,
    drain_seconds: float = 30.0,
    prepare: Callable[[Service], None] | None = None,
    page: bool = False,
) -> None:
    """Load the model and serve it until SIGTERM.

    Args:
        load: Returns the model; its errors end the command.
        settings: How the server behaves.
        listener: From ``serving.server.listen``. Connections wait in it while the model loads.
        drain_seconds: Time for requests in flight after SIGTERM.
        prepare: Called with the service once the model is loaded.
        page: Whether the server has the page.
    """
    if sys.stderr.isatty():
        print(f"Loading {settings.name} ...", file=sys.stderr)  # noqa: T201  for people
    service = Service(load(), settings)
    if prepare:
        prepare(service)
    serve(service, listener, page=page, drain_seconds=drain_seconds)
