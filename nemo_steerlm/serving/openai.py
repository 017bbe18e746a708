"""What OpenAI's endpoints share, and ``/v1/completions``."""

from __future__ import annotations

import abc
import hashlib
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec
from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from nemo_steerlm.core.errors import DataError, SteerLMError, Where, shown
from nemo_steerlm.core.tokenization import TextTokenizer
from nemo_steerlm.inference.engine import GenerationRequest, NextToken, Sampling, TokenLogprob
from nemo_steerlm.serving.errors import error_body, param_of, status_of
from nemo_steerlm.serving.logprobs import completion_logprobs
from nemo_steerlm.serving.model import Delta, Generation
from nemo_steerlm.serving.schemas import CompletionBody, SampledBody
from nemo_steerlm.serving.service import Service
from nemo_steerlm.serving.text_stream import AnswerText, Detokenizer

_COMPLETION_TOKENS = 16
"""OpenAI's default for completions; a chat answer may fill the context."""


class PartialAnswer:
    """What has been generated of one choice."""

    def __init__(self, prompt: Sequence[int], *, nothing: bool = False) -> None:
        """``nothing``: no token is wanted, whatever is generated."""
        self.prompt = prompt
        self.nothing = nothing
        self.text = ""
        self.tokens: list[NextToken] = []
        self.predicted: list[TokenLogprob] = []
        """Log-probabilities of the prompt's tokens from the second on, where they are wanted."""
        self.finish: str | None = "length" if nothing else None

    def take(self, delta: Delta) -> Delta:
        """Add one step. Returns what of it is told."""
        if delta.token is not None and delta.token.prompt:
            self.predicted = delta.token.prompt
        if self.nothing:
            return Delta("", None, "length")
        self.text += delta.text
        self.finish = delta.finish
        if delta.token is not None:
            self.tokens.append(delta.token)
        return delta


class Endpoint(abc.ABC):
    """What both endpoints share: they create rows, and return their steps as one answer or as server-sent events."""

    object_name: str
    chunk_name: str
    prefix: str
    candidates = 1
    """Rows for each answer."""

    def __init__(self, service: Service, body: SampledBody) -> None:
        self.service = service
        self.body = body
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.answers: list[PartialAnswer] = []
        self.generations: list[Generation] = []
        self.stop_ids = service.prompts.stop_ids(body.stop_token_ids, eos=not body.ignore_eos)
        bias = body.logit_bias or {}
        self.bias = tuple(zip(service.prompts.existing(_ids(bias), "logit_bias"), bias.values(), strict=True))

    def sampling(self, n: int) -> Sampling:
        """How the tokens of row ``n`` are drawn."""
        body = self.body
        temperature = 1.0 if body.temperature is None else body.temperature
        return Sampling(
            greedy=temperature == 0,
            frequency_penalty=body.frequency_penalty or 0.0,
            presence_penalty=body.presence_penalty or 0.0,
            bias=self.bias,
            allowed=tuple(self.service.prompts.existing(body.allowed_token_ids or (), "allowed_token_ids")),
            temperature=temperature or 1.0,
            top_k=max(body.top_k or 0, 0),
            top_p=1.0 if body.top_p is None else body.top_p,
            repetition_penalty=body.repetition_penalty or 1.0,
            seed=None if body.seed is None else _seed(body.seed, n),
        )

    def add(self, prompt: list[int], max_tokens: int | None, text: dict[str, Any], **wanted: Any) -> None:
        """``n`` rows for one prompt; none where neither tokens nor the prompt's probabilities are wanted."""
        nothing = max_tokens == 0
        room = self.service.prompts.room(max(prompt, wanted.get("reference") or (), key=len), max_tokens)
        for n in range((self.body.n or 1) * self.candidates):
            self.answers.append(PartialAnswer(prompt, nothing=nothing))
            if nothing and not wanted.get("prompt_logprobs"):
                continue
            request = GenerationRequest(
                prompt=tuple(prompt),
                sampling=self.sampling(n),
                stop_ids=self.stop_ids,
                min_tokens=min(self.body.min_tokens or 0, room),
                **wanted,
            )
            answer = AnswerText(self.service.model.tokenizer, prompt, stops=self.body.stop or (), **text)
            self.generations.append(Generation(request, max_tokens=max(room, 1), text=answer))

    async def respond(self, request: Request) -> Response:
        """The whole answer, or a stream of events."""
        self.service.require_open(len(self.generations))
        if self.body.stream:
            return StreamingResponse(self.events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        await self.service.within(request, self.complete())
        choices = [{"index": i, **self.choice(place)} for i, place in enumerate(self.given)]
        return _json(self.head(self.object_name) | {"choices": choices, "usage": self.usage()})

    @property
    def given(self) -> Sequence[int]:
        """Which of the answers are given, by position."""
        return range(len(self.answers))

    async def complete(self) -> None:
        """Run all rows to their end."""
        async for index, delta in self.steps():
            self.answers[index].take(delta)

    async def steps(self) -> AsyncIterator[tuple[int, Delta]]:
        """What the model does, answer by answer; where nothing is wanted of it, the end of each."""
        if self.generations:
            async for step in self.service.merged(self.generations):
                yield step
        else:
            for index in range(len(self.answers)):
                yield index, Delta("", None, "length")

    async def events(self) -> AsyncIterator[str]:
        """Server-sent events."""
        head = self.head(self.chunk_name)
        try:
            async for chunk in self.chunks():
                yield _event(head | {"choices": [chunk]})
            if (self.body.stream_options or {}).get("include_usage"):
                yield _event(head | {"choices": [], "usage": self.usage()})
            yield "data: [DONE]\n\n"
        except SteerLMError as error:
            yield _event(error_body(status_of(error), error.code, str(error), param_of(error)))

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The choices of all events."""
        indices = range(len(self.answers))
        unopened = set(indices) if self.opens_late() else set()
        for chunk in (chunk for index in indices if index not in unopened for chunk in self.opened(index)):
            yield chunk
        async for index, step in self.steps():
            answer = self.answers[index]
            delta = answer.take(step)
            if index in unopened:
                unopened.remove(index)
                for chunk in self.opened(index):
                    yield chunk
            if delta.text or delta.finish or self.shows_tokens():
                yield {"index": index, **self.step(answer, delta)}
        for index in indices:
            for chunk in await self.closing(index):
                yield {"index": index, **chunk}

    async def closing(self, index: int) -> list[dict[str, Any]]:
        """What is told of an answer once all are complete. Raises TimedOutError if finding it out takes too long."""
        del index
        return []

    def opened(self, index: int) -> list[dict[str, Any]]:
        """The choices of the events that come before the answer."""
        return [{"index": index, **chunk} for chunk in self.opening(self.answers[index])]

    def head(self, name: str) -> dict[str, Any]:
        """What every answer and event begins with."""
        return {"id": self.id, "object": name, "created": self.created, "model": self.service.settings.name}

    def usage(self) -> dict[str, int]:
        """Tokens read and written."""
        rows = (self.body.n or 1) * self.candidates
        prompt = sum(len(a.prompt) for i, a in enumerate(self.answers) if i % rows == 0)
        generated = sum(len(a.tokens) for a in self.answers)
        return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}

    def opens_late(self) -> bool:
        """Whether the opening needs what comes with the first token."""
        return False

    @abc.abstractmethod
    def opening(self, answer: PartialAnswer) -> list[dict[str, Any]]:
        """Choices that are told before the first token."""

    @abc.abstractmethod
    def shows_tokens(self) -> bool:
        """Whether every token is told, also one without text."""

    @abc.abstractmethod
    def choice(self, index: int) -> dict[str, Any]:
        """An answer as a whole, by its position."""

    @abc.abstractmethod
    def step(self, answer: PartialAnswer, delta: Delta) -> dict[str, Any]:
        """One step of an answer."""


class Completions(Endpoint):
    """``/v1/completions``."""

    object_name = chunk_name = "text_completion"
    prefix = "cmpl"

    def __init__(self, service: Service, body: CompletionBody) -> None:
        """Make the rows.

        Raises:
            DataError: If neither tokens nor the prompt are wanted.
        """
        super().__init__(service, body)
        self.completion = body
        self.offsets: dict[int, _Offsets] = {}
        wanted = _COMPLETION_TOKENS if body.max_tokens is None else limit_of(body.max_tokens)
        if wanted == 0 and not body.echo:
            raise DataError("is 0", where=Where(field="max_tokens"), instead="ask for a token, or for the prompt with echo")
        ids = service.prompts.existing(body.logprob_token_ids or (), "logprob_token_ids") if body.logprobs is not None else ()
        for prompt in body.prompt:
            rows = {"logprobs": body.logprobs, "logprob_ids": tuple(ids), "prompt_logprobs": self.opens_late()}
            self.add(service.prompts.raw(prompt), wanted, {}, **rows)

    def shows_tokens(self) -> bool:
        """See Endpoint."""
        return self.completion.logprobs is not None

    def opens_late(self) -> bool:
        """See Endpoint."""
        return bool(self.completion.echo) and self.completion.logprobs is not None

    def opening(self, answer: PartialAnswer) -> list[dict[str, Any]]:
        """See Endpoint."""
        if not self.completion.echo:
            return []
        return [{"text": self.prompt_text(answer), "logprobs": self._logprobs(answer, prompt=True), "finish_reason": None}]

    def choice(self, index: int) -> dict[str, Any]:
        """See Endpoint."""
        answer = self.answers[index]
        echo = bool(self.completion.echo)
        return {
            "text": self.prompt_text(answer) + answer.text if echo else answer.text,
            "logprobs": self._logprobs(answer, answer.tokens, prompt=echo),
            "finish_reason": answer.finish,
        }

    def step(self, answer: PartialAnswer, delta: Delta) -> dict[str, Any]:
        """See Endpoint."""
        tokens = [delta.token] if delta.token else []
        return {"text": delta.text, "logprobs": self._logprobs(answer, tokens), "finish_reason": delta.finish}

    def prompt_text(self, answer: PartialAnswer) -> str:
        """The prompt as text."""
        return self.service.model.tokenizer.decode(answer.prompt)

    def _logprobs(self, answer: PartialAnswer, tokens: Sequence[NextToken] = (), *, prompt: bool = False) -> dict[str, Any] | None:
        """Of the ``tokens`` that came last, behind those of the prompt if ``prompt``."""
        if self.completion.logprobs is None:
            return None
        entries: list[tuple[int, TokenLogprob | None]] = [(t.token, t.logprob) for t in tokens]
        if prompt:
            entries = [*zip(answer.prompt, [None, *answer.predicted], strict=True), *entries]
        places = self.offsets.setdefault(id(answer), _Offsets(self.service.model.tokenizer, () if self.completion.echo else answer.prompt))
        offsets = [places.next(token) for token, _ in entries]
        return completion_logprobs(self.service.prompts, entries, offsets, by_id=bool(self.completion.return_tokens_as_token_ids))


class _Offsets:
    """Where the text of each token of a choice begins."""

    def __init__(self, tokenizer: TextTokenizer, context: Sequence[int]) -> None:
        self._text = Detokenizer(tokenizer, context)
        self._at = 0

    def next(self, token: int) -> int:
        """Of the token that follows. Tokens that are one character together begin where it does."""
        at = self._at
        self._at += len(self._text.push(token))
        return at


def limit_of(max_tokens: int) -> int | None:
    """What LM Studio's and llama.cpp's clients mean by -1: as many as fit."""
    return None if max_tokens < 0 else max_tokens


def _seed(seed: int, choice: int) -> int:
    """The first choice has the request's seed; the others' are like no other request's, and the same the next time."""
    return seed if choice == 0 else int.from_bytes(hashlib.sha256(f"{seed} {choice}".encode()).digest()[:8], "big") >> 1


def _ids(bias: Mapping[str, float]) -> list[int]:
    """The keys of ``logit_bias``. Raises DataError."""
    for key in bias:
        if not (key.isascii() and key.isdigit() and len(key) < 16):
            raise DataError(f"token id {shown(key)} is none", where=Where(field="logit_bias"), instead='write {"TOKEN_ID": BIAS}')
    return [int(key) for key in bias]


def _json(body: Any) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")


def _event(body: Any) -> str:
    return f"data: {msgspec.json.encode(body).decode()}\n\n"
