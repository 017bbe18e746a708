"""Bulk requests to the servers of a run: answers under attributes from a steer model, attribute values from a value model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec

from nemo_steerlm.client.answer_journal import AnswerJournal
from nemo_steerlm.client.http import async_client, client_key
from nemo_steerlm.client.retry import Fault, RequestFailed, RetryPolicy, send
from nemo_steerlm.client.servers import Server, ServerPool
from nemo_steerlm.client.signals import run_until_signal
from nemo_steerlm.client.workers import run_workers
from nemo_steerlm.core.conversation import Conversation, Turn
from nemo_steerlm.core.errors import DataError, UnavailableError
from nemo_steerlm.core.labels import Label

IN_FLIGHT = 128
"""Concurrent requests per server at most: enough to fill its batches."""

POLICY = RetryPolicy(timeout=900.0, patience=120.0)
"""A long answer in a full batch takes minutes; a server that this run started and that is gone does not come back."""


class AnswerRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One answer to generate."""

    conversation: Conversation
    """Ends with the turn to answer."""
    label: Label | None
    """What to write under; None: no label."""
    seed: int


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a server wrote."""

    text: str
    finish: str = "stop"
    """``length`` where it was cut at the longest allowed."""


class TurnReading(msgspec.Struct, frozen=True, kw_only=True):
    """What a value model reads in one turn."""

    expected: dict[str, float]
    """Attribute names to expected values."""
    probabilities: dict[str, list[float]]
    """Attribute names to the probabilities of their values, ascending."""
    logprob: float | None = None
    """Log-probability of the whole label that was to be evaluated."""


class GenerationOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How answers are sampled. The names are those of ``POST /v1/chat/completions``."""

    max_tokens: int
    temperature: float
    top_k: int
    guidance_scale: float = 1.0


def generate_answers(
    urls: Sequence[str],
    requests: Sequence[AnswerRequest],
    options: GenerationOptions,
    progress: Callable[[int], None],
    journal: Path | None = None,
) -> list[Answer]:
    """Generate an answer for each request, spread over all servers.

    Args:
        urls: Servers of one steer model.
        requests: What to answer.
        options: How to sample, the same for all requests.
        progress: Called after each answer with the number of answers so far.
        journal: Where answers are kept as they come, so that a killed job goes on; they belong to this model. Removed by the caller.

    Returns:
        The answers, in the order of ``requests``.

    Raises:
        UnavailableError: If no server can be reached, or a request fails on every server.
        DataError: If a server refuses a request.
    """

    def body(request: AnswerRequest) -> dict[str, Any]:
        conversation = request.conversation
        system = [{"role": "system", "content": conversation.system}]
        return {
            "messages": system + [{"role": _role(turn, conversation), "content": turn.text} for turn in conversation.turns],
            "attributes": "none" if request.label is None else request.label.to_mapping(),
            "seed": request.seed,
            "max_tokens": options.max_tokens,
            "temperature": options.temperature,
            "top_k": options.top_k,
            **({"guidance_scale": options.guidance_scale} if options.guidance_scale != 1 else {}),
        }

    bodies = [body(request) for request in requests]
    if journal is None:
        replies = run_until_signal(_post_all(urls, "/v1/chat/completions", bodies, progress))
    else:
        with AnswerJournal(journal) as kept:
            replies = run_until_signal(_post_all(urls, "/v1/chat/completions", bodies, progress, kept))
    choices = [reply["choices"][0] for reply in replies]
    return [Answer(text=str(choice["message"]["content"]), finish=str(choice.get("finish_reason") or "stop")) for choice in choices]


def read_turns(
    urls: Sequence[str],
    conversations: Sequence[Conversation],
    progress: Callable[[int], None],
    labels: Sequence[Label] | None = None,
    batch: int = 32,
) -> list[TurnReading]:
    """Score the last turn of each conversation: the probabilities that the value model gives each value of each attribute.

    Args:
        urls: Servers of one value model.
        conversations: Each ends with a turn of the role that the model learned on.
        progress: Called after each request with the number of conversations scored so far.
        labels: For each conversation the label whose probability is wanted; readings are then conditional on it, field after field.
        batch: Conversations per request.

    Returns:
        For each conversation, in order, what is read in its last turn.

    Raises:
        UnavailableError: If no server can be reached, or a request fails on every server.
        DataError: If a server refuses a request.
    """
    batches = [conversations[i : i + batch] for i in range(0, len(conversations), batch)]
    bodies: list[dict[str, Any]] = [{"conversations": [c.to_prompt_record() for c in part], "turns": "unmasked"} for part in batches]
    if labels is not None:
        for body, start in zip(bodies, range(0, len(conversations), batch), strict=True):
            parts = zip(conversations[start : start + batch], labels[start : start + batch], strict=True)
            body["labels"] = [[*([None] * (sum(t.speaker != c.mask for t in c.turns) - 1)), label.to_mapping()] for c, label in parts]
    replies = run_until_signal(_post_all(urls, "/v1/attributes", bodies, lambda n: progress(min(n * batch, len(conversations)))))
    last_turns = [result["turns"][-1] for reply in replies for result in reply["results"]]
    return [
        TurnReading(
            expected={name: float(attribute["expected"]) for name, attribute in turn["attributes"].items()},
            probabilities={name: list(attribute["probabilities"].values()) for name, attribute in turn["attributes"].items()},
            logprob=turn["evaluated"]["logprob"] if "evaluated" in turn else None,
        )
        for turn in last_turns
    ]


def _role(turn: Turn, conversation: Conversation) -> str:
    return "user" if turn.speaker == conversation.mask else "assistant"


async def _post_all(
    urls: Sequence[str],
    path: str,
    bodies: Sequence[Mapping[str, Any]],
    progress: Callable[[int], None],
    journal: AnswerJournal | None = None,
) -> list[dict[str, Any]]:
    """The reply to each body, in order; ``progress`` gets the number of replies so far."""
    replies: dict[int, dict[str, Any]] = {}
    if journal:
        replies = {number: reply for number, body in enumerate(bodies) if (reply := journal.get(body)) is not None}
    missing = [(number, body) for number, body in enumerate(bodies) if number not in replies]
    if not missing:
        return [replies[number] for number in range(len(bodies))]
    timeout = httpx.Timeout(POLICY.timeout, connect=POLICY.connect_timeout)
    async with (
        async_client(urls, timeout=timeout, key=client_key()) as client,
        ServerPool(urls, client, POLICY, max_in_flight=IN_FLIGHT, start_limit=IN_FLIGHT) as pool,
    ):

        async def post(numbered: tuple[int, Mapping[str, Any]]) -> None:
            number, body = numbered
            replies[number] = await _post(client, pool, path, body)
            if journal:
                journal.add(body, replies[number])
            progress(len(replies))

        await run_workers(missing, post, count=min(IN_FLIGHT * len(urls), len(missing)))
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
