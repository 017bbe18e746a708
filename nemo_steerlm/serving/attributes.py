"""``POST /v1/attributes``: the value model's labels of conversations, with the probability of every value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from nemo_steerlm.core.conversation import Conversation
from nemo_steerlm.core.encoding import prompt_ids
from nemo_steerlm.core.errors import DataError, UsageError, Where
from nemo_steerlm.core.labels import LANGUAGE_KEY
from nemo_steerlm.inference.engine import Choice, ScoredTurn, ScoreRequest
from nemo_steerlm.inference.label_plan import LabelPlan, compile_label
from nemo_steerlm.serving.bodies import BodyRoute
from nemo_steerlm.serving.errors import ContextLengthError
from nemo_steerlm.serving.schemas import AttributesBody
from nemo_steerlm.serving.service import Service

LEAST = 1e-30
"""Stands for a probability of 0, whose logarithm is no number."""


def router(service: Service) -> APIRouter:
    """The route, bound to ``service``."""
    routes = APIRouter(prefix="/v1", tags=["SteerLM"], route_class=BodyRoute)
    reader = service if service.scores else service.reader
    scoring = None if reader is None else Scoring(reader)

    @routes.post("/attributes", summary="Read the attributes of conversations")
    async def attributes(body: AttributesBody, request: Request) -> Response:
        """Label turns, or evaluate given `labels`.

        The probabilities of a field are conditional on the fields before it in the label, as `label` has them: on the model's own choices,
        or on the given values. So they depend on the order of the schema's attributes.
        """
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


class Scoring:
    """What the endpoint does with a value model of this process, for requests and for answers that are read here."""

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
        results = [
            {"turns": [_turn(turn, given) for turn, given in zip(turns, request.given or (None,) * len(turns), strict=True)]}
            for turns, (request, _) in zip(scored, requests, strict=True)
        ]
        return {"model": self._service.model.info.fingerprint, "object": "list", "results": results}


def _requests(service: Service, plan: LabelPlan, body: AttributesBody) -> list[tuple[ScoreRequest, int]]:
    """Each conversation with its length. Raises DataError naming the one that is malformed or too long."""
    if (body.conversations is None) == (body.messages is None):
        raise DataError("the body needs one of conversations and messages")
    if body.messages is not None:
        named = {"messages": service.prompts.conversation(body.messages, None)}
    else:
        records = {f"conversations[{i}]": record for i, record in enumerate(body.conversations or ())}
        named = {field: _conversation(record, Where(field=field)) for field, record in records.items()}
    requests = [_request(service, plan, conversation, body.turns, field) for field, conversation in named.items()]
    if body.labels is None:
        return requests
    if len(body.labels) != len(requests):
        found = f"there are {len(body.labels)} for {len(requests)} conversations"
        raise DataError(found, where=Where(field="labels"), instead="give one list for each conversation")
    return [
        (msgspec.structs.replace(request, given=_given(service, request, labels, f"labels[{i}]")), length)
        for i, ((request, length), labels) in enumerate(zip(requests, body.labels, strict=True))
    ]


def _given(
    service: Service, request: ScoreRequest, labels: Sequence[Mapping[str, object] | None], field: str
) -> tuple[Mapping[str, str] | None, ...]:
    """The values to evaluate. Raises DataError naming the label that does not fit."""
    if len(labels) != len(request.turns):
        found = f"there are {len(labels)} for {len(request.turns)} turns that are read"
        raise DataError(found, where=Where(field=field), instead="give one for each, or null")
    given: list[Mapping[str, str] | None] = []
    for i, label in enumerate(labels):
        try:
            values = None if label is None else service.model.info.attributes.label(label).to_mapping()
        except DataError as error:
            raise DataError(error.reason, where=Where(field=f"{field}[{i}]"), instead=error.instead) from error
        given.append(None if values is None else {name: str(value) for name, value in values.items()})
    return tuple(given)


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
        reason, limit = f"the prompt is too long: {length} tokens with labels", service.model.max_length
        raise ContextLengthError(reason, where=Where(field=field), instead=f"this model takes {limit}")
    return ScoreRequest(conversation=conversation, turns=turns), length


def _turn(turn: ScoredTurn, given: Mapping[str, str] | None) -> dict[str, Any]:
    attributes = {name: _attribute(choice) for name, choice in turn.choices.items() if name != LANGUAGE_KEY}
    answer: dict[str, Any] = {"index": turn.index, "label": turn.label, "attributes": attributes}
    language = turn.choices.get(LANGUAGE_KEY)
    if language is not None:
        answer[LANGUAGE_KEY] = {"value": language.value, "probabilities": language.probabilities}
    if given is not None:
        logprobs = {name: math.log(max(turn.choices[name].probabilities[value], LEAST)) for name, value in given.items()}
        answer["evaluated"] = {"logprob": sum(logprobs.values()), "logprobs": logprobs}
    return answer


def _attribute(choice: Choice) -> dict[str, Any]:
    expected = sum(int(value) * chance for value, chance in choice.probabilities.items())
    return {"value": int(choice.value), "expected": expected, "probabilities": choice.probabilities}
