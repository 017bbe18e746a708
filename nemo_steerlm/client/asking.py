"""Asking a SteerLM server for answers under attributes, and a value server for what it reads in them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import httpx
import msgspec

from nemo_steerlm.client.http import async_client
from nemo_steerlm.client.retry import Fault, RequestFailed, RetryPolicy, send
from nemo_steerlm.client.servers import Server, ServerPool
from nemo_steerlm.client.signals import run_until_signal
from nemo_steerlm.core.conversation import Conversation, Turn
from nemo_steerlm.core.errors import DataError, UnavailableError
from nemo_steerlm.core.labels import Label

IN_FLIGHT = 64
"""Requests at a time to a server: enough to fill its batches."""

POLICY = RetryPolicy(timeout=900.0, patience=120.0)
"""A long answer in a full batch takes minutes; a server that this run started and that is gone does not come back."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One answer to generate."""

    conversation: Conversation
    """Ends with the turn to answer."""
    label: Label
    """What to write under."""
    seed: int


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How answers are drawn."""

    max_tokens: int
    temperature: float
    top_k: int


def answers(urls: Sequence[str], asks: Sequence[Ask], sampling: Sampling, done: Callable[[int], None]) -> list[str]:
    """One answer for each ask, in order, over all servers; ``done`` gets how many are there so far.

    Raises UnavailableError where no server can be reached or one request fails everywhere, DataError where one is refused.
    """

    def request(ask: Ask) -> tuple[str, dict[str, Any]]:
        body = {
            "messages": [{"role": "system", "content": ask.conversation.system}]
            + [{"role": _role(turn, ask.conversation), "content": turn.text} for turn in ask.conversation.turns],
            "attributes": ask.label.to_mapping(),
            "seed": ask.seed,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
        }
        return "/v1/chat/completions", body

    replies = run_until_signal(_all(urls, [request(ask) for ask in asks], done))
    return [str(reply["choices"][0]["message"]["content"]) for reply in replies]


def readings(
    urls: Sequence[str], conversations: Sequence[Conversation], done: Callable[[int], None], batch: int = 32
) -> list[dict[str, float]]:
    """The expected value of each attribute in the last turn of each conversation, as the value model reads it."""
    batches = [conversations[i : i + batch] for i in range(0, len(conversations), batch)]
    bodies = [("/v1/attributes", {"conversations": [_record(c) for c in part], "turns": "unmasked"}) for part in batches]
    replies = run_until_signal(_all(urls, bodies, lambda n: done(min(n * batch, len(conversations)))))
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
    replies: dict[int, dict[str, Any]] = {}
    pending = iter(enumerate(bodies))
    async with (
        async_client(urls, timeout=httpx.Timeout(POLICY.timeout, connect=POLICY.connect_timeout)) as client,
        ServerPool(urls, client, POLICY, max_in_flight=IN_FLIGHT, start_limit=IN_FLIGHT) as pool,
    ):

        async def work() -> None:
            for number, (path, body) in pending:
                replies[number] = await _post(client, pool, path, body)
                done(len(replies))

        tasks = [asyncio.create_task(work()) for _ in range(min(IN_FLIGHT * len(urls), len(bodies)))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return [replies[number] for number in range(len(bodies))]


async def _post(client: httpx.AsyncClient, pool: ServerPool, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    def request(server: Server) -> Awaitable[bytes]:
        return send(client, client.build_request("POST", f"{server.url}{path}", json=body), POLICY.timeout)

    try:
        reply: dict[str, Any] = msgspec.json.decode(await pool.call(request))
    except RequestFailed as failure:
        error = DataError if failure.fault is Fault.REQUEST else UnavailableError
        raise error(f"POST {path} failed: {failure.reason}") from failure
    return reply
