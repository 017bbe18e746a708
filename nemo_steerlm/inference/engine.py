"""The ``Engine`` protocol: one more token for every running row, and the attribute labels of conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from nemo_steerlm.core.conversation import Conversation
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.tokenization import TextTokenizer

TINY_TEMPERATURE = 1e-5
"""Below it scores divided by the temperature overflow, and the most probable token has all of the probability (vLLM's limit)."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is drawn from its distribution. Order: penalties, bias, temperature, top-k, top-p."""

    greedy: bool = False
    temperature: float = 1.0
    top_k: int = 0
    """0: all."""
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    """As in transformers: scores of tokens seen in prompt or output are divided by it (multiplied if negative)."""
    frequency_penalty: float = 0.0
    """As in OpenAI's API: subtracted from a token's score once for each time that the answer has the token."""
    presence_penalty: float = 0.0
    """As in OpenAI's API: subtracted from the score of every token that the answer has."""
    bias: tuple[tuple[int, float], ...] = ()
    """Token ids and what is added to their scores."""
    allowed: tuple[int, ...] = ()
    """The only tokens that may be chosen; empty: all."""
    seed: int | None = None
    """The same seed and request give the same text, whatever else is in the batch. None: a random seed."""

    @property
    def takes_best(self) -> bool:
        """Whether nothing is drawn: the token with the best score is next."""
        return self.greedy or self.top_k == 1 or self.temperature < TINY_TEMPERATURE

    @property
    def changes_scores(self) -> bool:
        """Whether scores are changed before a token is chosen."""
        return self.repetition_penalty != 1.0 or bool(self.frequency_penalty or self.presence_penalty or self.bias or self.allowed)


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One row to generate. The scheduler stops it; the engine only needs to know which tokens must not come too early."""

    prompt: tuple[int, ...]
    """Token ids, at least one."""
    sampling: Sampling = Sampling()
    stop_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    """``stop_ids`` have probability 0 before this many tokens are generated."""
    logprobs: int | None = None
    """None: no log-probabilities. Otherwise that of the chosen token, and those of this many most probable tokens."""
    logprob_ids: tuple[int, ...] = ()
    """Tokens whose log-probabilities replace those of the most probable ones; needs ``logprobs``."""
    prompt_logprobs: bool = False
    """Whether the first generated token comes with log-probabilities of the prompt's tokens (``NextToken.prompt``)."""
    full_logprobs: bool = False
    """Whether log-probabilities of the whole vocabulary are returned (upstream's ``all_probs``)."""
    reference: tuple[int, ...] | None = None
    """The same prompt under a reference label, from which ``guidance`` leads away; None: no guidance."""
    guidance: float = 1.0
    """Scores are ``reference + guidance * (prompt - reference)``, in log-probabilities: 1 is the prompt alone, 0 the reference alone."""

    @property
    def guided(self) -> bool:
        """Whether the reference changes anything."""
        return self.reference is not None and self.guidance != 1.0 and self.reference != self.prompt

    @property
    def rows(self) -> int:
        """Rows that it takes in a batch."""
        return 2 if self.guided else 1


class TokenLogprob(NamedTuple):
    """A token's natural log-probability under the model's own distribution (before temperature and filters), and other tokens'."""

    logprob: float
    top: list[tuple[int, float]]
    """``(token id, log-probability)``, most probable first."""
    full: list[float] | None = None


class NextToken(NamedTuple):
    """One row's result of one step."""

    token: int
    logprob: TokenLogprob | None = None
    prompt: list[TokenLogprob] | None = None
    """For prompt tokens 1, 2, … (the first has no prediction). Only with the first generated token, if asked for."""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The model's reading of one label field."""

    value: str
    """The most probable allowed value."""
    probabilities: dict[str, float]
    """Of every allowed value, in schema order. They sum to 1: constrained decoding leaves nothing else."""


class ScoredTurn(msgspec.Struct, frozen=True, kw_only=True):
    """The predicted label of one turn."""

    index: int
    label: str
    choices: dict[str, Choice]
    """By attribute name, in label order; the language under ``lang`` if the schema has languages. Each is conditional on the fields
    before it, as ``label`` has them."""


class ScoreRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation and the turns to label, ascending. Labels of other turns are context; those of these turns are ignored."""

    conversation: Conversation
    turns: tuple[int, ...]
    given: tuple[Mapping[str, str] | None, ...] = ()
    """For each turn the values to evaluate, by field name: they stand in the label whatever the model would choose, and later fields are
    read after them. Fields without a value, and turns with None, are the model's choice. Empty: all are."""


class Engine(Protocol):
    """A loaded model. Only one thread, the scheduler's, calls ``add``, ``step``, ``remove`` and ``score``.

    Rows are numbered by the caller. Results of a row do not depend on which other rows are there.
    """

    info: ModelInfo
    tokenizer: TextTokenizer
    max_length: int
    """Tokens of prompt and answer together."""
    max_rows: int
    """Rows that may generate at once (a guided request takes two), and conversations per call of ``score``."""

    @property
    def reused_tokens(self) -> int:
        """Tokens of prompts and conversations so far that were not read, because something that begins alike had been."""

    def add(self, row: int, request: GenerationRequest) -> None:
        """Let ``row`` take part from the next ``step`` on."""

    def step(self) -> dict[int, NextToken]:
        """One more token for every row."""

    def remove(self, row: int) -> None:
        """Drop ``row``: it is finished or cancelled."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[list[ScoredTurn]]:
        """The labels of one batch of conversations, each no longer than ``max_length``."""

    def close(self) -> None:
        """Release everything but memory. No more calls follow."""
