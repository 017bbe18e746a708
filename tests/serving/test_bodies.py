"""Large bodies: others are answered while one is read, and what would take long to read is refused. Without a socket."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_steerlm.core.errors import DataError, shown
from nemo_steerlm.inference.registry import EngineOptions
from nemo_steerlm.serving import bodies
from nemo_steerlm.serving.app import create_app
from nemo_steerlm.serving.service import Service, Settings
from nemo_steerlm.serving.startup import local_model
from tests.serving.in_process import http_scope

USER = {"role": "user", "content": "a"}
TOO_MANY = f"the body has more than {bodies.MOST_VALUES} texts, lists and objects; send several smaller requests"
POST, PUT = "POST", "PUT"
LARGE = {
    "numbers": (POST, "/v1/completions", lambda: {"prompt": [1] * 1_000_000}, "the prompt is too long: 1000000 characters"),
    "prompts": (POST, "/v1/completions", lambda: {"prompt": [[1]] * 300_000}, TOO_MANY),
    "messages": (POST, "/v1/chat/completions", lambda: {"messages": [{}] * 300_000}, TOO_MANY),
    "few messages": (POST, "/v1/chat/completions", lambda: {"messages": [{}] * 60_000}, "messages[0].role: is missing"),
    "texts": (POST, "/v1/chat/completions", lambda: {"messages": [USER], "stop": ["x"] * 300_000}, TOO_MANY),
    "fields": (POST, "/v1/completions", lambda: {str(i): 1 for i in range(300_000)}, TOO_MANY),
    "records": (POST, "/v1/attributes", lambda: {"conversations": [{"conversations": []}] * 100_000}, TOO_MANY),
    "end strings": (PUT, "/generate", lambda: {"sentences": ["a"], "end_strings": ["x"] * 300_000}, TOO_MANY),
}


@pytest.fixture(scope="module")
def app(steer_folder) -> Iterator[Any]:
    service = Service(local_model(steer_folder, EngineOptions(device="cpu", max_rows=2)), Settings())
    yield create_app(service)
    service.close()


async def sent(app: Any, method: str, path: str, body: bytes) -> tuple[int, str, int]:
    """Status, what is said, and how often the event loop had a turn for others while the body was read."""
    turns = 0
    said: list[dict[str, Any]] = []
    message = {"type": "http.request", "body": body, "more_body": False}

    async def receive() -> dict[str, Any]:
        nonlocal message, turns
        if not message:
            await asyncio.Event().wait()
        found, message, turns = message, {}, 0
        return found

    async def send(event: dict[str, Any]) -> None:
        said.append(event | {"turns": turns})

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(others())
    await app(http_scope(method, path), receive, send)
    counting.cancel()
    return said[0]["status"], said[1]["body"].decode(), said[0]["turns"]


@pytest.mark.parametrize("kind", LARGE)
def test_others_have_their_turns_while_a_large_body_is_read(app, kind):
    method, path, body, says = LARGE[kind]
    content = json.dumps(body()).encode()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads take turns often enough to be counted
    try:
        status, said, turns = asyncio.run(sent(app, method, path, content))
    finally:
        sys.setswitchinterval(before)
    assert (status, says in said) == (400, True), said
    assert turns > 20


VALUES = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


def counted(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(counted, value.values()))
    return 1 + sum(map(counted, value)) if isinstance(value, list) else int(isinstance(value, str))


@given(value=VALUES, ascii_only=st.booleans())
def test_values_are_counted_as_json_counts_them(value, ascii_only):
    body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "_LARGE", 0)
        patch.setattr(bodies, "MOST_VALUES", counted(value))
        try:
            found = bodies.parsed(body)
        except UnicodeDecodeError:
            return
        assert found == value
        if counted(value):
            patch.setattr(bodies, "MOST_VALUES", counted(value) - 1)
            with pytest.raises(DataError):
                bodies.parsed(body)


def test_a_complaint_quotes_only_the_beginning_of_what_it_found():
    assert shown(["x" * 5] * 10**6) == shown(["x" * 5] * 100)
    assert shown("x" * 10**6) == "'" + "x" * 58 + "…"
