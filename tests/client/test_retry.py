from __future__ import annotations

import datetime as dt

import httpx
import pytest

from nemo_steerlm.client.retry import Fault, RequestFailed, RetryPolicy, _try_again, classify_exception, classify_status, retry_after

NOW = dt.datetime(2026, 1, 1, 12, 0, tzinfo=dt.timezone.utc)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        ("Thu, 01 Jan 2026 12:00:30 GMT", 30.0),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("-3", None),
        ("", None),
        ("86400", 600.0),
        ("9" * 400, 600.0),
        ("Fri, 02 Jan 2026 12:00:00 GMT", 600.0),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(text: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": text}, NOW) == seconds


@pytest.mark.parametrize(
    ("status", "fault"),
    [
        (200, None),
        (429, Fault.BUSY),
        (408, Fault.BUSY),
        (503, Fault.BUSY),
        (502, Fault.SERVER),
        (401, Fault.SERVER),
        (404, Fault.SERVER),
        (302, Fault.SERVER),
        (500, Fault.ATTEMPT),
        (400, Fault.REQUEST),
        (413, Fault.REQUEST),
        (422, Fault.REQUEST),
    ],
)
def test_a_status_says_whose_fault_it_is(status: int, fault: Fault | None) -> None:
    assert classify_status(status) is fault


def test_a_refused_connection_costs_no_attempt_and_a_cut_one_does() -> None:
    assert classify_exception(httpx.ConnectError("refused")) is Fault.SERVER
    assert classify_exception(httpx.ReadError("cut")) is Fault.ATTEMPT
    assert classify_exception(httpx.RemoteProtocolError("torn")) is Fault.ATTEMPT
    assert classify_exception(httpx.ReadTimeout("hangs")) is Fault.ATTEMPT


def test_rests_grow_to_a_limit() -> None:
    policy = RetryPolicy(wait_initial=0.5, wait_max=4)
    assert [policy.pause(n) for n in range(6)] == [0.5, 1, 2, 4, 4, 4]
    assert policy.pause(10**6) == 4


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (RequestFailed(Fault.ATTEMPT, "HTTP 500", 7.0), 7.0),
        (RequestFailed(Fault.ATTEMPT, "HTTP 500", 0.0), 0.0),
        (RequestFailed(Fault.ATTEMPT, "cut"), True),
        (RequestFailed(Fault.BUSY, "HTTP 429", 7.0), False),
        (RequestFailed(Fault.REQUEST, "HTTP 400"), False),
        (ValueError("a mistake of ours"), False),
    ],
)
def test_what_may_be_the_requests_fault_is_tried_again_when_the_server_says(error: Exception, again: bool | float) -> None:
    found = _try_again(error)
    assert (found, type(found)) == (again, type(again))
