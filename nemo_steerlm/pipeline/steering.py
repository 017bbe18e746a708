"""Asking a SteerLM server for answers under attributes, and a value server for what it reads in them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
import msgspec

from nemo_steerlm.core.conversation import Conversation, Turn
from nemo_steerlm.core.errors import DataError, UnavailableError, shown

IN_FLIGHT = 64
"""Requests at a time: enough to fill a server's batches."""

TIMEOUT = httpx.Timeout(900.0, connect=30.0)


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One answer to generate."""

    conversation: Conversation
    """Ends with the turn to answer."""
    attributes: dict[str, int | str]
    """Values by name, and ``lang`` where the schema has languages."""
    seed: int


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How answers are drawn."""

    max_tokens: int
    temperature: float
    top_k: int


def answers(urls: Sequence[str], asks: Sequence[Ask], sampling: Sampling, done: Callable[[int], None]) -> list[str]:
    """One answer for each ask, in order, over all servers; ``done`` gets how many are there so far.

    Raises UnavailableError where a server cannot be reached or fails, DataError where it refuses a request.
    """

    def request(ask: Ask) -> tuple[str, dict[str, Any]]:
        body = {
            "messages": [{"role": "system", "content": ask.conversation.system}]
            + [{"role": _role(turn, ask.conversation), "content": turn.text} for turn in ask.conversation.turns],
            "attributes": ask.attributes,
            "seed": ask.seed,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
        }
        return "/v1/chat/completions", body

    replies = asyncio.run(_all(urls, [request(ask) for ask in asks], done))
    return [str(reply["choices"][0]["message"]["content"]) for reply in replies]


def readings(
    urls: Sequence[str], conversations: Sequence[Conversation], done: Callable[[int], None], batch: int = 32
) -> list[dict[str, float]]:
    """The expected value of each attribute in the last turn of each conversation, as the value model reads it."""
    batches = [conversations[i : i + batch] for i in range(0, len(conversations), batch)]
    bodies = [("/v1/attributes", {"conversations": [_record(c) for c in part], "turns": "unmasked"}) for part in batches]
    replies = asyncio.run(_all(urls, bodies, lambda n: done(min(n * batch, len(conversations)))))
    read = []
    for reply in replies:
        for result in reply["results"]:
            last = result["turns"][-1]["attributes"]
            read.append({name: float(found["expected"]) for name, found in last.items()})
    return read


def _role(turn: Turn, conversation: Conversation) -> str:
    return "user" if turn.speaker == conversation.mask else "assistant"


def _record(conversation: Conversation) -> dict[str, Any]:
    turns = [{"value": turn.text, "from": turn.speaker} for turn in conversation.turns]
    return {"conversations": turns, "system": conversation.system, "mask": conversation.mask, "type": "TEXT_TO_VALUE"}


async def _all(urls: Sequence[str], bodies: Sequence[tuple[str, Mapping[str, Any]]], done: Callable[[int], None]) -> list[dict[str, Any]]:
    slots = asyncio.Semaphore(IN_FLIGHT)
    finished = 0

    async with httpx.AsyncClient(timeout=TIMEOUT, limits=httpx.Limits(max_connections=IN_FLIGHT)) as client:

        async def one(number: int, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
            nonlocal finished
            async with slots:
                reply = await _post(client, urls[number % len(urls)] + path, body)
            finished += 1
            done(finished)
            return reply

        return list(await asyncio.gather(*(one(i, path, body) for i, (path, body) in enumerate(bodies))))


async def _post(client: httpx.AsyncClient, url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    while True:
        try:
            response = await client.post(url, json=body)
        except httpx.HTTPError as error:
            raise UnavailableError(f"{url}: {type(error).__name__} {error}") from error
        if response.status_code != httpx.codes.TOO_MANY_REQUESTS:
            break
        # The queue is bounded on purpose; the server says when to come back.
        await asyncio.sleep(float(response.headers.get("Retry-After", "1")))
    if response.is_server_error:
        raise UnavailableError(f"{url}: HTTP {response.status_code} {shown(response.text, 200)}")
    if response.is_error:
        raise DataError(f"{url} refused a request: HTTP {response.status_code} {shown(response.text, 200)}")
    reply: dict[str, Any] = response.json()
    return reply
