"""What a failed request means: read status and headers, classify the fault, decide how long to wait before the next attempt."""

from __future__ import annotations

import datetime as dt
import email.utils
import enum
from collections.abc import Mapping

import anyio
import httpx
import msgspec
import stamina


class Fault(enum.Enum):
    """Whose fault a failed request is, which decides what happens next."""

    BUSY = "busy"
    """The server is overloaded: send it less. Costs the request no attempt."""
    SERVER = "server"
    """The server cannot be reached or refuses this client: use another. Costs the request no attempt."""
    ATTEMPT = "attempt"
    """Server or request may be at fault (500, cut answer, timeout, wrong value): try again a limited number of times, on another server if
    possible."""
    REQUEST = "request"
    """The request is invalid for every server: final."""


class RequestFailed(Exception):  # noqa: N818 - an event that is handled, not an error that is shown
    """One request to one server did not give a usable answer."""

    def __init__(self, fault: Fault, reason: str, retry_after: float | None = None) -> None:
        self.fault = fault
        self.reason = reason
        self.retry_after = retry_after
        """Seconds that the server asked to wait; None if it did not."""
        super().__init__(reason)


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How long and how often to try. All times in seconds."""

    attempts: int = 8
    """Tries of one request that end in ``Fault.ATTEMPT``, before it is given up."""
    deadline: float = 3600.0
    """One request altogether, waiting included."""
    timeout: float = 120.0
    """One try, from the connection to the last byte."""
    connect_timeout: float = 10.0
    patience: float = 600.0
    """No good answer from any server for this long ends the run (exit 69)."""
    wait_initial: float = 0.1
    wait_max: float = 15.0

    def attempts_of(self) -> stamina._core._RetryContextIterator:
        """The attempts of one request, with exponential backoff and jitter. Only ``Fault.ATTEMPT`` leads to another attempt."""
        return stamina.retry_context(
            on=_try_again,
            attempts=self.attempts,
            timeout=self.deadline,
            wait_initial=self.wait_initial,
            wait_max=self.wait_max,
            wait_jitter=self.wait_initial,
        )

    def pause(self, failures: int) -> float:
        """Seconds that a server is left alone after ``failures`` failures in a row."""
        return float(min(self.wait_max, self.wait_initial * 2 ** min(failures, 20)))


def _try_again(error: Exception) -> bool | float:
    if not isinstance(error, RequestFailed) or error.fault is not Fault.ATTEMPT:
        return False
    return True if error.retry_after is None else error.retry_after


LONGEST_REST = 600.0
"""The longest ``Retry-After`` that is obeyed, in seconds: a server that asks for a day must not drop out of the run."""


def retry_after(headers: Mapping[str, str], now: dt.datetime) -> float | None:
    """Seconds that ``Retry-After`` asks for, LONGEST_REST at most, given as seconds or as a date (RFC 9110 section 10.2.3).

    None if it is absent or unreadable.
    """
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), LONGEST_REST)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.timezone.utc)
    return min(max(0.0, (moment - now).total_seconds()), LONGEST_REST)


def classify_status(status: int) -> Fault | None:
    """The fault that a response status stands for; None for success."""
    if 200 <= status < 300:
        return None
    if status in (408, 429, 503):
        return Fault.BUSY
    if status in (401, 403, 404, 405, 407, 502, 504) or status < 400:
        # No record can cause these: a proxy without a backend, a wrong address or key, a server of another kind.
        return Fault.SERVER
    return Fault.ATTEMPT if status >= 500 else Fault.REQUEST


def classify_exception(error: Exception) -> Fault:
    """The fault that an exception of the HTTP client stands for."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout | httpx.UnsupportedProtocol | httpx.ProxyError):
        return Fault.SERVER
    # A connection cut in mid-answer or a timeout: the request itself may have killed the server.
    return Fault.ATTEMPT


async def send(client: httpx.AsyncClient, request: httpx.Request, seconds: float) -> bytes:
    """One try: the body of a successful response.

    Raises:
        RequestFailed: For every other outcome, with the fault.
    """
    try:
        # Before Python 3.12, asyncio.wait_for swallows a cancellation that arrives together with the answer.
        with anyio.fail_after(seconds):
            response = await client.send(request)
    except (TimeoutError, httpx.TimeoutException) as error:
        fault = classify_exception(error)
        raise RequestFailed(fault, f"no answer within {seconds:g} s") from error
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        raise RequestFailed(classify_exception(error), f"{type(error).__name__}: {error}") from error
    fault_of_status = classify_status(response.status_code)
    if fault_of_status is None:
        return response.content
    wait = retry_after(response.headers, dt.datetime.now(dt.timezone.utc))
    raise RequestFailed(fault_of_status, f"HTTP {response.status_code}: {error_message(response)}", wait)


def error_message(response: httpx.Response) -> str:
    """What an error response says: OpenAI's ``error.message``, Flask's ``message``, or the start of its text."""
    try:
        body = msgspec.json.decode(response.content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return response.text[:200].strip() or response.reason_phrase
    if isinstance(body, dict):
        inner = body.get("error")
        body = inner.get("message") if isinstance(inner, dict) else body.get("message", inner)
    return str(body)[:200]
