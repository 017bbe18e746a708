"""What the page does, without its looks: it asks the service as the API's routes do, and says in words what went wrong."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from nemo_steerlm.core.errors import SteerLMError
from nemo_steerlm.serving.limits import access
from nemo_steerlm.serving.model import QueueFullError
from nemo_steerlm.serving.openai import chat_rows
from nemo_steerlm.serving.playground.reading import LocalReader, Reader
from nemo_steerlm.serving.schemas import AttributesBody, ChatBody, Message
from nemo_steerlm.serving.service import Service


class Asking:
    """One served model, as the page asks it."""

    def __init__(self, service: Service, reader: Reader | None = None) -> None:
        """``reader`` reads for a steer model; a value model, or a service that has one beside it, needs none."""
        self.service = service
        local = service if service.scores else service.reader
        self.reader: Reader | None = LocalReader(local) if local else reader

    async def write(self, bodies: Sequence[ChatBody]) -> AsyncGenerator[list[str], None]:
        """The answers to chat requests side by side, as far as they have come, from nothing to all. Raises SteerLMError."""
        texts = [""] * len(bodies)
        with self._request("chat", bodies):
            rows = [row for body in bodies for row in await chat_rows(self.service, body)]
            self.service.require_open(len(rows))
            yield list(texts)
            async with contextlib.aclosing(self.service.merged(rows)) as steps:
                async for index, delta in steps:
                    texts[index] += delta.text
                    if delta.text or delta.finish:
                        yield list(texts)

    async def read(self, messages: Sequence[Message]) -> dict[str, Any]:
        """How the last turn of the assistant reads, as one of the ``turns`` of ``POST /v1/attributes``. Raises SteerLMError."""
        assert self.reader is not None
        body = AttributesBody(messages=list(messages))
        with self._request("attributes", [body]):
            answer = await self.reader.read(body)
            turn: dict[str, Any] = answer["results"][0]["turns"][-1]
            return turn

    @contextlib.contextmanager
    def _request(self, action: str, bodies: Sequence[BaseModel]) -> Iterator[None]:
        """Count and log a request as the routes' are."""
        self.service.in_flight += 1
        started = time.monotonic()
        outcome = "gone"
        try:
            yield
            outcome = "answered"
        except SteerLMError as error:
            outcome = error.code
            raise
        finally:
            self.service.in_flight -= 1
            entry: dict[str, Any] = {"event": "page", "action": action, "outcome": outcome, "seconds": round(time.monotonic() - started, 4)}
            if self.service.settings.log_prompts:
                entry["body"] = [body.model_dump(exclude_none=True) for body in bodies]
            access.info("%s", json.dumps(entry, ensure_ascii=False))


def problem(error: Exception) -> str:
    """What to tell the person who asked."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    if isinstance(error, QueueFullError):
        return f"The server is busy ({error}). Try again in a moment."
    return str(error)
