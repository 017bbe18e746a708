"""The ``Model`` protocol that the routes use: a model that answers many requests at once, local or remote."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Literal, NamedTuple, Protocol

from nemo_steerlm.core.errors import SteerLMError
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.tokenization import TextTokenizer
from nemo_steerlm.inference.engine import GenerationRequest, NextToken, ScoredTurn, ScoreRequest
from nemo_steerlm.serving.metrics import Metrics
from nemo_steerlm.serving.text_stream import AnswerText

Finish = Literal["stop", "length"]


class QueueFullError(SteerLMError):
    """The queue is full."""

    code = "queue_full"
    exit_code = 75


class EngineFailedError(SteerLMError):
    """The engine raised; the cause is in the log."""

    code = "engine_failed"


class Delta(NamedTuple):
    """One step of one answer."""

    text: str
    """Text that became certain; may be empty."""
    token: NextToken | None
    finish: Finish | None = None


class Generation:
    """A row to generate: what the engine needs, and when to stop."""

    def __init__(self, request: GenerationRequest, *, max_tokens: int, text: AnswerText) -> None:
        self.request = request
        self.max_tokens = max_tokens
        self.text = text
        self.generated = 0

    def advance(self, token: NextToken) -> Delta:
        """Take one more token. Returns the text that became certain, and the finish reason with the last token."""
        self.generated += 1
        if token.token in self.request.stop_ids:
            return Delta(self.text.flush(ended=True), token, "stop")
        text = self.text.push(token.token)
        if self.text.stopped():
            # What was held back before a control string that is no token of its own is the answer's.
            return Delta(text + self.text.flush(ended=False), token, "stop")
        if self.generated >= self.max_tokens:
            text += self.text.flush(ended=False)
            return Delta(text, token, "stop" if self.text.stopped() else "length")
        return Delta(text, token)


class Model(Protocol):
    """A model being served: a ``Scheduler`` around an engine of this process, or another server (``RemoteModel``)."""

    info: ModelInfo
    tokenizer: TextTokenizer
    max_length: int
    """Tokens of prompt and answer together."""
    metrics: Metrics
    guides: bool
    """Whether an answer can be guided by a second prompt (``GenerationRequest.reference``)."""

    def require_room(self, more: int) -> None:
        """Check that the queue has room. Raises QueueFullError if ``more`` rows or conversations cannot wait."""

    def stream(self, generation: Generation, together: int = 1) -> AsyncIterator[Delta]:
        """The answer as it comes; ``together`` is the number of rows of its request. Leaving the loop early cancels the row.

        Raises:
            QueueFullError: If the row cannot wait.
            DataError: If the request asks for what the model does not offer.
        """

    async def score(self, requests: Sequence[tuple[ScoreRequest, int]]) -> list[list[ScoredTurn]]:
        """Labels of conversations; each request comes with its length in tokens."""

    def close(self) -> None:
        """Cancel all work and release the engine."""
