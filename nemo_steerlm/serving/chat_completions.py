"""``/v1/chat/completions``: answers under attributes, their strength, the best of several, and how they read."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from nemo_steerlm.core.errors import DataError, UsageError, Where
from nemo_steerlm.inference.engine import NextToken
from nemo_steerlm.serving.answer_reading import AnswerReader, AnswerReading
from nemo_steerlm.serving.errors import TimedOutError
from nemo_steerlm.serving.logprobs import chat_logprobs
from nemo_steerlm.serving.model import Delta
from nemo_steerlm.serving.openai import Endpoint, PartialAnswer, limit_of
from nemo_steerlm.serving.schemas import ChatBody
from nemo_steerlm.serving.service import Service


class ChatCompletions(Endpoint):
    """``/v1/chat/completions``."""

    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"
    prefix = "chatcmpl"

    def __init__(self, service: Service, reader: AnswerReader, body: ChatBody) -> None:
        """Make the rows.

        Raises:
            UsageError: If the model reads attributes instead of writing under them.
            DataError: If the body asks for what the model does not have.
        """
        if service.scores:
            raise UsageError("this is a value model: it reads attributes (POST /v1/attributes); serve the steer model to chat")
        super().__init__(service, body)
        self.chat = body
        self.reading = AnswerReading(service, reader, body)
        self.candidates = self.reading.candidates
        self.chosen: Sequence[int] | None = None
        wanted = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        self.add(
            service.prompts.chat(body.messages, body.asked),
            None if wanted is None else limit_of(wanted),
            {"template": service.prompts.template, "control_stops": service.prompts.control_stops()[1]},
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            **self._guidance(),
        )

    def _guidance(self) -> dict[str, Any]:
        """What the rows are led away from, and how strongly. Raises DataError where the engine takes one prompt an answer."""
        scale = 1.0 if self.chat.guidance_scale is None else self.chat.guidance_scale
        if scale == 1:
            return {}
        if not self.service.model.guides:
            raise DataError(
                "the server that has the weights combines no two prompts",
                where=Where(field="guidance_scale"),
                instead="serve the model with an engine of this project (embedded or openvino), or leave it out",
            )
        body = self.chat
        return {
            "reference": tuple(self.service.prompts.reference(body.messages, body.asked, body.guidance_attributes)),
            "guidance": scale,
        }

    @property
    def given(self) -> Sequence[int]:
        """See Endpoint."""
        return super().given if self.chosen is None else self.chosen

    async def complete(self) -> None:
        """See Endpoint."""
        await super().complete()
        self.chosen = await self.reading.choose([answer.text for answer in self.answers])

    async def closing(self, index: int) -> list[dict[str, Any]]:
        """See Endpoint.

        Raises:
            TimedOutError: If the answers are not read within the time of a request.
        """
        if self.chosen is None:
            seconds = self.service.settings.request_timeout
            try:
                self.chosen = await asyncio.wait_for(self.reading.choose([answer.text for answer in self.answers]), seconds)
            except asyncio.TimeoutError as error:
                raise TimedOutError(f"the answer was not read within {seconds:g} s") from error
        more = self.reading.details(index)
        if self.chat.read is None and "warning" not in more:
            return []
        return [{"delta": {}, "logprobs": None, "finish_reason": None, "steerlm": more}] if more else []

    def shows_tokens(self) -> bool:
        """See Endpoint."""
        return bool(self.chat.logprobs)

    def opening(self, answer: PartialAnswer) -> list[dict[str, Any]]:
        """See Endpoint."""
        del answer
        return [{"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}]

    def choice(self, index: int) -> dict[str, Any]:
        """See Endpoint."""
        answer = self.answers[index]
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {"message": message, "logprobs": self._logprobs(answer.tokens), "finish_reason": answer.finish}
        return choice | ({"steerlm": more} if (more := self.reading.details(index)) else {})

    def step(self, answer: PartialAnswer, delta: Delta) -> dict[str, Any]:
        """See Endpoint."""
        del answer
        content = {"content": delta.text} if delta.text else {}
        return {"delta": content, "logprobs": self._logprobs([delta.token] if delta.token else []), "finish_reason": delta.finish}

    def _logprobs(self, tokens: Sequence[NextToken]) -> dict[str, Any] | None:
        return chat_logprobs(self.service.prompts, tokens) if self.chat.logprobs else None
