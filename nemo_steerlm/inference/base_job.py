"""What is asked of a base model in evaluation, and what comes back: the files of ``base_answers``. Imports nothing heavy."""

from __future__ import annotations

import msgspec


class BaseRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One answer to generate."""

    messages: list[dict[str, str]]
    """``role`` and ``content``, as chat templates want them."""
    seed: int


class BaseJob(msgspec.Struct, frozen=True, kw_only=True):
    """Answers to generate, and texts whose likelihood is wanted."""

    model: str
    """Path of the base model: a Hugging Face folder or a ``.gguf``."""
    requests: list[BaseRequest] = []
    max_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    likelihoods: bool = False
    """Whether the likelihoods of ``texts`` and of the answers are wanted."""
    texts: list[str] = []


class Likelihood(msgspec.Struct, frozen=True, kw_only=True):
    """How likely a text is to a model."""

    nll: float
    """Negative log-likelihood of the whole text, natural."""
    tokens: int


class BaseAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What the base model wrote."""

    text: str
    finish: str
    likelihood: Likelihood | None = None


class BaseResult(msgspec.Struct, frozen=True, kw_only=True):
    """In the order of the job."""

    answers: list[BaseAnswer]
    texts: list[Likelihood]
