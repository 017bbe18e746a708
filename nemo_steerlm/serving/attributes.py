"""``POST /v1/attributes``: the value model's labels of conversations, with the probability of every value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from nemo_steerlm.core.conversation import Conversation
from nemo_steerlm.core.errors import DataError, UsageError, Where
from nemo_steerlm.core.labels import LANGUAGE_KEY
from nemo_steerlm.core.tokenization import prompt_ids
from nemo_steerlm.inference.engine import Choice, ScoredTurn, ScoreRequest
from nemo_steerlm.inference.label_plan import LabelPlan, compile_label
from nemo_steerlm.serving.errors import ContextLengthError
from nemo_steerlm.serving.schemas import AttributesBody
from nemo_steerlm.serving.service import Service


def router(service: Service) -> APIRouter:
    """The route, bound to ``service``."""
    routes = APIRouter(prefix="/v1", tags=["SteerLM"])
    reader = service if service.scores else service.reader
    scoring = None if reader is None else _Scoring(reader)

    @routes.post("/attributes", summary="Read the attributes of conversations")
    async def attributes(body: AttributesBody, request: Request) -> Response:
        service.named(body.model)
        if scoring is not None:
            requests = await scoring.requests(body)
            answer = await service.within(request, scoring.answer(requests))
        elif service.remote_reader is not None:
            service.require_open(0)
            answer = await service.within(request, service.remote_reader.read(await request.body()))
        else:
            raise UsageError("this is a steer model: it writes (POST /v1/chat/completions); serve the value model to score")
        return Response(msgspec.json.encode(answer), media_type="application/json")

    return routes


class _Scoring:
    """What the endpoint does with a value model of this process."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._plan = compile_label(service.model.info, service.model.tokenizer)

    async def requests(self, body: AttributesBody) -> list[tuple[ScoreRequest, int]]:
        """The conversations to score, with their lengths in tokens.

        Raises:
            DataError: If a conversation is malformed or too long.
            DrainingError: If the server is stopping.
            QueueFullError: If its queue is full.
        """
        requests = await run_in_threadpool(_requests, self._service, self._plan, body)
        self._service.require_open(len(requests))
        return requests

    async def answer(self, requests: Sequence[tuple[ScoreRequest, int]]) -> dict[str, Any]:
        """The endpoint's answer to them."""
        scored = await self._service.model.score(requests)
        results = [{"turns": [_turn(turn) for turn in turns]} for turns in scored]
        return {"model": self._service.model.info.fingerprint, "object": "list", "results": results}


def _requests(service: Service, plan: LabelPlan, body: AttributesBody) -> list[tuple[ScoreRequest, int]]:
    """Each conversation with its length. Raises DataError naming the one that is malformed or too long."""
    if (body.conversations is None) == (body.messages is None):
        raise DataError("the body needs one of conversations and messages")
    if body.messages is not None:
        conversations = [service.prompts.conversation(body.messages, None)]
    else:
        conversations = [_conversation(record, Where(field=f"conversations[{i}]")) for i, record in enumerate(body.conversations or ())]
    return [_request(service, plan, c, body.turns, f"conversations[{i}]") for i, c in enumerate(conversations)]


def _conversation(record: Mapping[str, Any], where: Where) -> Conversation:
    conversation = Conversation.from_record(record, where)
    try:
        "".join((conversation.system, *(t for turn in conversation.turns for t in (turn.speaker, turn.text, turn.label or "")))).encode()
    except UnicodeEncodeError as error:
        raise DataError("text has an unpaired surrogate", where=where) from error
    return conversation


def _request(service: Service, plan: LabelPlan, conversation: Conversation, which: str, field: str) -> tuple[ScoreRequest, int]:
    turns = tuple(i for i, turn in enumerate(conversation.turns) if which == "all" or turn.speaker != conversation.mask)
    if not turns:
        return ScoreRequest(conversation=conversation, turns=()), 0
    service.prompts.require_short(len(conversation.system) + sum(len(turn.text) for turn in conversation.turns), field)
    spans = service.prompts.template.label_prompt(conversation, turns[-1])
    length = len(prompt_ids(spans, service.model.tokenizer)) + len(turns) * plan.length
    if length > service.model.max_length:
        limit = service.model.max_length
        raise ContextLengthError(f"too long: {length} tokens with labels", where=Where(field=field), instead=f"this model takes {limit}")
    return ScoreRequest(conversation=conversation, turns=turns), length


def _turn(turn: ScoredTurn) -> dict[str, Any]:
    attributes = {name: _attribute(choice) for name, choice in turn.choices.items() if name != LANGUAGE_KEY}
    answer: dict[str, Any] = {"index": turn.index, "label": turn.label, "attributes": attributes}
    language = turn.choices.get(LANGUAGE_KEY)
    if language is not None:
        answer[LANGUAGE_KEY] = {"value": language.value, "probabilities": language.probabilities}
    return answer


def _attribute(choice: Choice) -> dict[str, Any]:
    expected = sum(int(value) * chance for value, chance in choice.probabilities.items())
    return {"value": int(choice.value), "expected": expected, "probabilities": choice.probabilities}
