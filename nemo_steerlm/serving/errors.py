"""Errors as OpenAI's clients read them: one body for all of them, the status of each class, and sentences for what a body has wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError

from nemo_steerlm.core.errors import DataError, SteerLMError, UsageError, shown
from nemo_steerlm.serving.model import QueueFullError
from nemo_steerlm.serving.remote_protocol import RemoteError


class ContextLengthError(DataError):
    """A prompt is longer than the model takes.

    Its sentence has "the prompt is too long": clients before many servers (litellm 1.110, langchain-openai 1.7) tell by these words, since
    OpenAI's client (3.57) no longer shows them the code.
    """

    code = "context_length_exceeded"


class UnknownModelError(SteerLMError):
    """A request names a model that this server does not have."""

    code = "model_not_found"


class TimedOutError(SteerLMError):
    """The answer took longer than the server's time limit."""

    code = "timeout"


class DrainingError(SteerLMError):
    """The server is stopping and takes no more requests."""

    code = "draining"


class ClientGoneError(SteerLMError):
    """The client hung up; nobody reads the answer."""

    code = "client_gone"


STATUSES: dict[type[SteerLMError], int] = {
    DataError: 400,
    ContextLengthError: 400,
    UsageError: 400,
    UnknownModelError: 404,
    # Not 504: the server is well, the request was too large for the time it may take.
    TimedOutError: 408,
    QueueFullError: 429,
    ClientGoneError: 499,
    RemoteError: 502,
    DrainingError: 503,
}
HTTP_CODES = {
    400: "invalid_request", 401: "unauthorized", 404: "not_found", 405: "method_not_allowed", 408: "timeout", 413: "too_large",
    503: "busy",
}  # fmt: skip
"""Codes of what is refused before a route looks at it."""
RETRY_AFTER = {429: "1", 503: "5"}
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 408: "timeout_error", 429: "rate_limit_error"}


def error_body(status: int, code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error object. ``type`` follows from the status; ``param`` is the field that is wrong, where one is."""
    # A message may quote what came in, and that may be no text at all: half a surrogate pair has no encoding.
    text = message.encode("utf-8", "backslashreplace").decode()
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    field = param.encode("utf-8", "backslashreplace").decode() if param else None
    return {"error": {"message": text, "type": kind, "param": field, "code": code}}


def status_of(error: SteerLMError) -> int:
    """The status that an error is answered with."""
    return STATUSES.get(type(error), 500)


def param_of(error: SteerLMError) -> str | None:
    """The field that an error is about, where it names one."""
    return error.where.field if isinstance(error, DataError) else None


def invalid_body(error: RequestValidationError) -> tuple[str, str | None]:
    """What is wrong with a body: a sentence, and the field."""
    first = error.errors()[0]
    kind, found, context = first["type"], first.get("input"), first.get("ctx", {})
    if kind == "json_invalid":
        return f"the body is not JSON: {context.get('error', 'cannot be read')} at character {first['loc'][-1]}", None
    field = _path([*first["loc"], *([context["field"]] if "field" in context else [])])
    if field is None:
        if isinstance(found, bytes):
            return "send a JSON object, with the header Content-Type: application/json", None
        if kind == "missing":
            return "the body is empty: send a JSON object", None
        return f"the body must be a JSON object, not {shown(found)}", None
    return f"{field}: {_complaint(kind, str(first['msg']), found, context)}", field


def _complaint(kind: str, message: str, found: Any, context: Mapping[str, Any]) -> str:
    if kind == "missing":
        return "is missing"
    if kind in ("value_error", "refused"):
        return str(context.get("error") or message)
    return f"{message.replace('Input should be', 'must be').replace('Input should', 'must')}, not {shown(found)}"


def _path(parts: Sequence[str | int]) -> str | None:
    """``messages[0].content``. Parts that name a validator instead of a field are left out."""
    path = ""
    for part in parts[1:] if parts and parts[0] == "body" else parts:
        if isinstance(part, int):
            path += f"[{part}]"
        elif "[" not in part and "(" not in part:
            path += f".{part}" if path else part
    return path or None
