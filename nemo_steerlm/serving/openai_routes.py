"""OpenAI's routes: ``/v1/models``, ``/v1/completions``, ``/v1/chat/completions`` (the latter with ``attributes``)."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from nemo_steerlm.serving.answer_reading import AnswerReader
from nemo_steerlm.serving.bodies import BodyRoute
from nemo_steerlm.serving.chat_completions import ChatCompletions
from nemo_steerlm.serving.openai import Completions
from nemo_steerlm.serving.schemas import ChatBody, CompletionBody
from nemo_steerlm.serving.service import Service


def router(service: Service) -> APIRouter:
    """The routes, bound to ``service``."""
    routes = APIRouter(prefix="/v1", tags=["OpenAI"], route_class=BodyRoute)
    reader = AnswerReader(service)

    @routes.get("/models", summary="The model, its attribute schema and whether it scores")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(one) for one in service.served]}

    @routes.get("/models/{name:path}", summary="One model")
    async def model(name: str) -> dict[str, Any]:
        return _model(service.named(name))

    @routes.post("/completions", summary="Continue a raw prompt")
    async def completions(body: CompletionBody, request: Request) -> Response:
        return await (await run_in_threadpool(Completions, service.named(body.model), body)).respond(request)

    @routes.post("/chat/completions", summary="Answer under attributes")
    async def chat(body: ChatBody, request: Request) -> Response:
        return await (await run_in_threadpool(ChatCompletions, service.named(body.model), reader, body)).respond(request)

    return routes


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.settings.name,
        "object": "model",
        "created": service.started,
        "owned_by": "nemo_steerlm",
        "max_model_len": service.model.max_length,
        "scores": service.scores,
        "reads": service.scores or service.reader is not None or service.remote_reader is not None,
        "guides": service.model.guides and not service.scores,
        "default_attributes": service.prompts.default_attributes,
        "metadata": {"steerlm": service.model.info.to_dict()},
    }
