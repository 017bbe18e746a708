"""OpenAI's endpoints: ``/v1/models``, ``/v1/completions``, ``/v1/chat/completions`` (the latter with ``attributes``)."""

from __future__ import annotations

import abc
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from nemo_steerlm.core.errors import DataError, SteerLMError, UsageError
from nemo_steerlm.inference.engine import GenerationRequest, NextToken, Sampling, TokenLogprob
from nemo_steerlm.serving.model import Delta, Generation
from nemo_steerlm.serving.schemas import ChatBody, CompletionBody, SampledBody
from nemo_steerlm.serving.service import Service
from nemo_steerlm.serving.text_stream import AnswerText

_COMPLETION_TOKENS = 16
"""OpenAI's default for completions; a chat answer may fill the context."""


class _Answer:
    """One choice of the answer so far."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.prompt = prompt
        self.text = ""
        self.tokens: list[NextToken] = []
        self.finish: str | None = None

    def take(self, delta: Delta) -> None:
        """Add one step."""
        self.text += delta.text
        self.finish = delta.finish
        if delta.token is not None:
            self.tokens.append(delta.token)


def router(service: Service) -> APIRouter:
    """The routes, bound to ``service``."""
    routes = APIRouter(prefix="/v1", tags=["OpenAI"])
    served = [service] if service.reader is None else [service, service.reader]

    @routes.get("/models", summary="The model, its attribute schema and whether it scores")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(one) for one in served]}

    @routes.get("/models/{name:path}", summary="One model")
    async def model(name: str) -> JSONResponse:
        for one in served:
            if name == one.settings.name:
                return JSONResponse(_model(one))
        return JSONResponse({"error": {"code": "not_found", "message": f"no such model; this server has {service.settings.name}"}}, 404)

    @routes.post("/completions", summary="Continue a raw prompt")
    async def completions(body: CompletionBody, request: Request) -> Response:
        return await (await run_in_threadpool(_Completions, service, body)).respond(request)

    @routes.post("/chat/completions", summary="Answer under attributes")
    async def chat(body: ChatBody, request: Request) -> Response:
        return await (await run_in_threadpool(_Chat, service, body)).respond(request)

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
        "default_attributes": service.prompts.default_attributes,
        "metadata": {"steerlm": service.model.info.to_dict()},
    }


class _Endpoint(abc.ABC):
    """What both endpoints share: they create rows, and return their steps as one answer or as server-sent events."""

    object_name: str
    chunk_name: str
    prefix: str

    def __init__(self, service: Service, body: SampledBody) -> None:
        self.service = service
        self.body = body
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.answers: list[_Answer] = []
        self.generations: list[Generation] = []

    def sampling(self, n: int) -> Sampling:
        body = self.body
        temperature = 1.0 if body.temperature is None else body.temperature
        return Sampling(
            greedy=temperature == 0,
            temperature=temperature or 1.0,
            top_k=max(body.top_k or 0, 0),
            top_p=1.0 if body.top_p is None else body.top_p,
            repetition_penalty=body.repetition_penalty or 1.0,
            # Choices differ from each other, but repeat in the next request with this seed.
            seed=None if body.seed is None else body.seed + n,
        )

    def add(self, prompt: list[int], max_tokens: int | None, text: dict[str, Any], **wanted: Any) -> None:
        """``n`` rows for one prompt."""
        room = self.service.prompts.room(prompt, max_tokens)
        for n in range(self.body.n or 1):
            request = GenerationRequest(
                prompt=tuple(prompt), sampling=self.sampling(n), min_tokens=min(self.body.min_tokens or 0, room), **wanted
            )
            answer = AnswerText(self.service.model.tokenizer, prompt, stops=self.body.stop or (), **text)
            self.generations.append(Generation(request, max_tokens=room, text=answer))
            self.answers.append(_Answer(prompt))

    async def respond(self, request: Request) -> Response:
        """The whole answer, or a stream of events."""
        self.service.require_open(len(self.generations))
        if self.body.stream:
            return StreamingResponse(self.events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        await self.service.within(request, self.complete())
        choices = [{"index": i, **self.choice(a)} for i, a in enumerate(self.answers)]
        return _json(self.head(self.object_name) | {"choices": choices, "usage": self.usage()})

    async def complete(self) -> None:
        """Run all rows to their end."""
        async for index, delta in self.service.merged(self.generations):
            self.answers[index].take(delta)

    async def events(self) -> AsyncIterator[str]:
        """Server-sent events."""
        head = self.head(self.chunk_name)
        try:
            for chunk in self.opening():
                yield _event(head | {"choices": [chunk]})
            async for index, delta in self.service.merged(self.generations):
                answer = self.answers[index]
                answer.take(delta)
                if delta.text or delta.finish or self.shows_tokens():
                    yield _event(head | {"choices": [{"index": index, **self.step(delta)}]})
            if (self.body.stream_options or {}).get("include_usage"):
                yield _event(head | {"choices": [], "usage": self.usage()})
            yield "data: [DONE]\n\n"
        except SteerLMError as error:
            yield _event({"error": {"code": error.code, "message": str(error)}})

    def head(self, name: str) -> dict[str, Any]:
        return {"id": self.id, "object": name, "created": self.created, "model": self.service.settings.name}

    def usage(self) -> dict[str, int]:
        prompt = sum(len(a.prompt) for i, a in enumerate(self.answers) if i % (self.body.n or 1) == 0)
        generated = sum(len(a.tokens) for a in self.answers)
        return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}

    def opening(self) -> list[dict[str, Any]]:
        return []

    @abc.abstractmethod
    def shows_tokens(self) -> bool: ...

    @abc.abstractmethod
    def choice(self, answer: _Answer) -> dict[str, Any]: ...

    @abc.abstractmethod
    def step(self, delta: Delta) -> dict[str, Any]: ...


class _Completions(_Endpoint):
    """``/v1/completions``."""

    object_name = chunk_name = "text_completion"
    prefix = "cmpl"

    def __init__(self, service: Service, body: CompletionBody) -> None:
        super().__init__(service, body)
        self.completion = body
        prompts: list[Any] = body.prompt if isinstance(body.prompt, list) and not _is_ids(body.prompt) else [body.prompt]
        stop_ids = service.prompts.stop_ids(body.stop_token_ids)
        wanted = _COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        if wanted == 0 and not body.echo:
            raise DataError("max_tokens is 0", instead="ask for a token, or for the prompt with echo")
        for prompt in prompts:
            echoed = bool(body.echo) and body.logprobs is not None
            ids = () if body.logprobs is None else tuple(service.prompts.raw(body.logprob_token_ids)) if body.logprob_token_ids else ()
            rows = {"stop_ids": stop_ids, "logprobs": body.logprobs, "logprob_ids": ids, "prompt_logprobs": echoed}
            self.add(service.prompts.raw(prompt), max(wanted, 1), {}, **rows)
        self.echo_only = wanted == 0

    def shows_tokens(self) -> bool:
        return self.completion.logprobs is not None

    def opening(self) -> list[dict[str, Any]]:
        if not self.completion.echo:
            return []
        return [{"index": i, "text": self.prompt_text(a), "logprobs": None, "finish_reason": None} for i, a in enumerate(self.answers)]

    def choice(self, answer: _Answer) -> dict[str, Any]:
        tokens = [] if self.echo_only else answer.tokens
        text = "" if self.echo_only else answer.text
        if self.completion.echo:
            text = self.prompt_text(answer) + text
        return {
            "text": text,
            "logprobs": self._logprobs(tokens, answer if self.completion.echo else None),
            "finish_reason": "length" if self.echo_only else answer.finish,
        }

    def step(self, delta: Delta) -> dict[str, Any]:
        tokens = [delta.token] if delta.token and not self.echo_only else []
        text = "" if self.echo_only else delta.text
        return {"text": text, "logprobs": self._logprobs(tokens), "finish_reason": delta.finish}

    def prompt_text(self, answer: _Answer) -> str:
        return self.service.model.tokenizer.decode(answer.prompt)

    def _logprobs(self, tokens: Sequence[NextToken], echoed: _Answer | None = None) -> dict[str, Any] | None:
        if self.completion.logprobs is None:
            return None
        entries: list[tuple[int, TokenLogprob | None]] = [(t.token, t.logprob) for t in tokens]
        if echoed is not None:
            predicted = echoed.tokens[0].prompt or []
            entries = [*zip(echoed.prompt, [None, *predicted], strict=True), *entries]
        text_of = _token_name if self.completion.return_tokens_as_token_ids else self.service.prompts.token_text
        texts = [text_of(token) for token, _ in entries]
        offsets = [0]
        for text in texts[:-1]:
            offsets.append(offsets[-1] + len(text))
        return {
            "tokens": texts,
            "token_logprobs": [found.logprob if found else None for _, found in entries],
            "top_logprobs": [{text_of(t): p for t, p in reversed(found.top)} if found else None for _, found in entries],
            "text_offset": offsets[: len(texts)],
        }


class _Chat(_Endpoint):
    """``/v1/chat/completions``."""

    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"
    prefix = "chatcmpl"

    def __init__(self, service: Service, body: ChatBody) -> None:
        if service.scores:
            raise UsageError("this is a value model: it reads attributes (POST /v1/attributes); serve the steer model to chat")
        super().__init__(service, body)
        self.chat = body
        wanted = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        self.add(
            service.prompts.chat(body.messages, body.asked),
            None if wanted is None else max(wanted, 1),
            {"template": service.prompts.template, "control_stops": service.prompts.control_stops()[1]},
            stop_ids=service.prompts.stop_ids(body.stop_token_ids),
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        )

    def shows_tokens(self) -> bool:
        return bool(self.chat.logprobs)

    def opening(self) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [{"index": i, "delta": delta, "logprobs": None, "finish_reason": None} for i in range(len(self.answers))]

    def choice(self, answer: _Answer) -> dict[str, Any]:
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        return {"message": message, "logprobs": self._logprobs(answer.tokens), "finish_reason": answer.finish}

    def step(self, delta: Delta) -> dict[str, Any]:
        content = {"content": delta.text} if delta.text else {}
        return {"delta": content, "logprobs": self._logprobs([delta.token] if delta.token else []), "finish_reason": delta.finish}

    def _logprobs(self, tokens: Sequence[NextToken]) -> dict[str, Any] | None:
        if not self.chat.logprobs:
            return None
        content = []
        for token, found, _ in tokens:
            if found is not None:
                top = [self._entry(t, p) for t, p in found.top]
                content.append(self._entry(token, found.logprob) | {"top_logprobs": top})
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.service.prompts.token_text(token)
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode())}


def _token_name(token: int) -> str:
    return f"token_id:{token}"


def _is_ids(prompt: Sequence[Any]) -> bool:
    return bool(prompt) and isinstance(prompt[0], int)


def _json(body: Any) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")


def _event(body: Any) -> str:
    return f"data: {msgspec.json.encode(body).decode()}\n\n"
