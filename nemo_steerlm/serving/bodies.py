"""JSON bodies. A large one is read in a thread, one at a time, and refused where reading it would hold the interpreter for long."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import anyio.to_thread
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from nemo_steerlm.core.errors import DataError
from nemo_steerlm.core.json_text import once
from nemo_steerlm.serving.service import Service

T = TypeVar("T")

MOST_VALUES = 100_000
"""Texts, lists and objects in a body: a thousand conversations have a fifth of them. Making one takes a microsecond, during which no other
thread runs; numbers are many times cheaper."""
_LARGE = 64 * 1024
"""Bytes from which on a body is read in a thread; below it, changing threads takes longer than reading."""
_VALUE = re.compile(rb'"[^"]*"|[\[{]')


def parsed(body: bytes) -> Any:
    """What a JSON body says.

    Raises:
        DataError: If it has too many values, or an object has a key twice.
        ValueError: If it is no JSON.
        RecursionError: If it is nested too deeply.
    """
    if len(body) > _LARGE:
        # Without escapes a string ends at the next quotation mark. The loop is in Python, so that other threads get their turns.
        plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
        for number, _ in enumerate(_VALUE.finditer(plain), 1):
            if number > MOST_VALUES:
                raise DataError(f"the body has more than {MOST_VALUES} texts, lists and objects", instead="send several smaller requests")
    return json.loads(body, object_pairs_hook=once)


async def read_beside(service: Service, read: Callable[[bytes], T], body: bytes) -> T:
    """``read(body)``, off the event loop if it is large. Of large bodies only one is read at a time: threads would hold each other up."""
    if len(body) <= _LARGE:
        return read(body)
    return await anyio.to_thread.run_sync(read, body, limiter=service.large_bodies)


class BodyRoute(APIRoute):
    """A route whose large bodies are parsed and checked off the event loop. The app's ``state.service`` is the service."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See APIRoute."""
        handle = super().get_route_handler()
        model: Any = self.body_field.field_info.annotation if self.body_field else None

        async def handle_beside(request: Request) -> Response:
            return await handle(_Request(request, model))

        return handle_beside


class _Request(Request):
    def __init__(self, request: Request, model: type[BaseModel] | None) -> None:
        super().__init__(request.scope, request.receive)
        self._model = model

    async def json(self) -> Any:
        """The body; a large one already as the route's model, which pydantic takes as it is.

        Raises:
            RequestValidationError: If the model refuses it.
        """
        return await read_beside(self.app.state.service, self._read, await self.body())

    def _read(self, body: bytes) -> Any:
        value = parsed(body)
        if self._model is None or len(body) <= _LARGE:
            return value
        try:
            return self._model.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise RequestValidationError([{**first, "loc": ("body", *first["loc"])}]) from error
