"""Answers that were asked for under labels, and what was read in them: what every figure of control is computed from."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One of several answers to one request, of which the value model chose."""

    answer: str
    finish: str = "stop"
    logprob: float
    """Log-probability of the whole label that was asked for, as the value model reads the answer: the largest is chosen."""
    expected: dict[str, float] = {}
    """Expected value of each attribute, given the asked values of the attributes before it."""
    read: dict[str, float] = {}
    """As ``Sample.read``; of the first and the chosen candidate only."""
    judged: float | None = None
    """As ``Sample.judged``."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One answer that was asked for with ``attribute`` at ``level``, and what the judges made of it."""

    attribute: str
    """The one attribute that was steered; empty in a joint request, whose attributes are all drawn at random."""
    level: int
    prompt: str
    answer: str
    asked: dict[str, int] = {}
    """The whole label that was asked for; just ``level`` where a model was told nothing else."""
    model: str = ""
    """Who wrote: a training stage, or a baseline."""
    finish: str = "stop"
    """``length`` where the answer was cut at the longest allowed."""
    read: dict[str, float] = {}
    """Expected value of each attribute, as the value model reads the answer."""
    judged: float | None = None
    """What the judge that took no part in training says, in the judge's own unit."""
    nll: float | None = None
    """Negative log-likelihood of the answer to the base model, where it was measured."""
    tokens: int = 0
    """Of how many tokens of the base model."""
    candidates: list[Candidate] = []
    """The answers of which this is the chosen one, in the order in which they came; empty where it is the only one."""

    @property
    def joint(self) -> bool:
        """Whether all attributes were drawn at random."""
        return not self.attribute

    @property
    def wanted(self) -> dict[str, int]:
        """Values by name, as asked."""
        return self.asked or {self.attribute: self.level}

    @property
    def single(self) -> Sample:
        """The first candidate, which nobody chose: what the model answers when it is asked once."""
        if not self.candidates:
            return self
        first = self.candidates[0]
        return Sample(
            attribute=self.attribute,
            level=self.level,
            prompt=self.prompt,
            asked=self.asked,
            model=self.model,
            answer=first.answer,
            finish=first.finish,
            read=first.read,
            judged=first.judged,
        )


def candidates_of(samples: Sequence[Sample]) -> int:
    """Of how many answers each of ``samples`` is the chosen one; 1 where it is the only one."""
    return max((len(sample.candidates) for sample in samples), default=0) or 1


def spread(prompts: Sequence[object], count: int, seed: int) -> list[int]:
    """``count`` positions in ``prompts``, every prompt used equally often, in an order that depends on ``seed`` only."""
    order = list(range(len(prompts)))
    random.Random(seed).shuffle(order)
    return [order[i % len(order)] for i in range(count)]
