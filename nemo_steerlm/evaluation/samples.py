"""Answers that were asked for under labels, and what was read in them: what every figure of control is computed from."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import msgspec


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

    @property
    def joint(self) -> bool:
        """Whether all attributes were drawn at random."""
        return not self.attribute

    @property
    def wanted(self) -> dict[str, int]:
        """Values by name, as asked."""
        return self.asked or {self.attribute: self.level}


def spread(prompts: Sequence[object], count: int, seed: int) -> list[int]:
    """``count`` positions in ``prompts``, every prompt used equally often, in an order that depends on ``seed`` only."""
    order = list(range(len(prompts)))
    random.Random(seed).shuffle(order)
    return [order[i % len(order)] for i in range(count)]


def best_of(candidates: Sequence[Mapping[str, Sequence[float]]], asked: Mapping[str, int], lows: Mapping[str, int]) -> int:
    """Which candidate reads most like ``asked``: the largest sum over its attributes of the log-probability of the asked value.

    ``candidates`` have the probabilities of every value by attribute, the first value being ``lows``'s. All attributes of the label count:
    choosing by the steered one alone lets the others drift.
    """

    def likelihood(probabilities: Mapping[str, Sequence[float]]) -> float:
        named = ((probabilities[name], value - lows[name]) for name, value in asked.items() if name in probabilities)
        return sum(math.log(max(chances[at], 1e-12)) for chances, at in named)

    return max(range(len(candidates)), key=lambda i: likelihood(candidates[i]))
