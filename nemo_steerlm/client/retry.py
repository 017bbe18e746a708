"""What a failed request means: read (status and headers), classify (whose fault it is), wait (how long before the next try)."""

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
    """The server asks for less: send it less. Costs the request nothing."""
    SERVER = "server"
    """The server cannot be reached or refuses this client: go elsewhere. Costs the request nothing."""
    ATTEMPT = "attempt"
    """Either may be at fault (500, cut answer, timeout, wrong value): try again, elsewhere if possible, a limited number of times."""
    REQUEST = "request"
    """The request is wrong for any server: final."""


class RequestFailed(Exception):  # noqa: N818 - an event that is handled, not an error that is shown
    """One request to one server did not give a usable answer."""

    def __init__(self, fault: Fault, reason: str, retry_after: float | None = None) -> None:
        self.fault = fault
        self.reason = reason
        self.retry_after = retry_after
        """Seconds the server asked to wait, where it did."""
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
        """The attempts of one request, exponentially further apart, with jitter. Only ``Fault.ATTEMPT`` gets another one."""
        return stamina.retry_context(
            on=_try_again,
            attempts=self.attempts,
            timeout=self.deadline,
            wait_initial=self.wait_initial,
            wait_max=self.wait_max,
            wait_jitter=self.wait_initial,
        )

    def pause(self, failures: int) -> float:
        """How long a server rests after that many failures in a row."""
        return float(min(self.wait_max, self.wait_initial * 2 ** min(failures, 20)))


def _try_again(error: Exception) -> bool | float:
    if not isinstance(error, RequestFailed) or error.fault is not Fault.ATTEMPT:
        return False
    return True if error.retry_after is None else error.retry_after


LONGEST_REST = 600.0
"""Seconds a server may ask to be left alone: one that names a day must not put itself out of the run."""


def retry_after(headers: Mapping[str, str], now: dt.datetime) -> float | None:
    """Seconds that ``Retry-After`` asks for, LONGEST_REST at most, given as seconds or as a date (RFC 9110 section 10.2.3).

    None where it is absent or unreadable.
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
    """Whose fault a response status is; None where it is a success."""
    if 200 <= status < 300:
        return None
    if status in (408, 429, 503):
        return Fault.BUSY
    if status in (401, 403, 404, 405, 407, 502, 504) or status < 400:
        # No record can cause these: a proxy in front of nothing, a wrong address or key, a server of another kind.
        return Fault.SERVER
    return Fault.ATTEMPT if status >= 500 else Fault.REQUEST


def classify_exception(error: Exception) -> Fault:
    """Whose fault an exception of the HTTP client is."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout | httpx.UnsupportedProtocol | httpx.ProxyError):
        return Fault.SERVER
    # A connection cut in mid-answer, a timeout: the request itself may be what kills the server.
    return Fault.ATTEMPT


async def send(client: httpx.AsyncClient, request: httpx.Request, seconds: float) -> bytes:
    """One try: the body of a successful response. Raises RequestFailed, classified, for everything else."""
    try:
        # asyncio.wait_for swallows a cancellation that comes with the answer, before Python 3.12.
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
