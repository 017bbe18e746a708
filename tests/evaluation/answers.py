"""Answers of models whose figures are known: one that steers, and the quickstart's run that did not (its means and its noise)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from statistics import NormalDist

from nemo_steerlm.evaluation.samples import Candidate, Sample

ANSWERS = 64
FAILING = {"read": (0.59, 2.18, 2.29, 2.77, 2.73), "judged": (-0.51, 0.35, 0.31, 0.46, 0.50)}
"""Positivity as one run of the quickstart had it; its headline was a Spearman of 0.90."""
STEERING = {"read": (0.3, 1.0, 2.1, 3.0, 3.8), "judged": (-0.9, -0.4, 0.1, 0.5, 0.9)}


def answers(
    read: Sequence[float],
    judged: Sequence[float],
    *,
    noise: tuple[float, float] = (0.9, 0.433),
    attribute: str = "positivity",
    other: float = 0.0,
    prompts: int = 1,
) -> list[Sample]:
    """``ANSWERS`` a level, normally spread around the means, in an order that ties no level's deviations to another's.

    ``other`` is the slope of the other attribute's reading; ``prompts`` how many there are, used equally often.
    """
    made = []
    for level, (mean, say) in enumerate(zip(read, judged, strict=True)):
        for i in range(ANSWERS):
            by = [NormalDist().inv_cdf((((i * step + level) % ANSWERS) + 0.5) / ANSWERS) for step in (23, 37)]
            made.append(
                Sample(
                    attribute=attribute,
                    level=level,
                    prompt=f"prompt {i % prompts}",
                    answer=f"answer {i} of {level}",
                    read={attribute: mean + noise[0] * by[0], "verbosity": 2 + other * level},
                    judged=say + noise[1] * by[1],
                )
            )
    return made


def failing() -> list[Sample]:
    """See ``FAILING``."""
    return answers(**FAILING)


def steering() -> list[Sample]:
    """See ``STEERING``."""
    return answers(**STEERING, noise=(0.3, 0.15))


CANDIDATES = 8


def best_of(read: Callable[[int, random.Random], float], *, joint: bool = False, prompts: int = 1) -> list[Sample]:
    """Each answer the one of ``CANDIDATES`` that reads nearest to what was asked; ``read`` says how a candidate reads. The judge agrees."""
    numbers = random.Random(1)
    made = []
    for level in range(5):
        for i in range(ANSWERS):
            found = [max(0.0, min(4.0, read(level, numbers))) for _ in range(CANDIDATES)]
            readings = [{"positivity": value, "verbosity": 2.0} for value in found]
            nearest = min(range(CANDIDATES), key=lambda n: abs(found[n] - level))
            candidates = [
                Candidate(
                    answer=f"candidate {n}",
                    logprob=-abs(value - level),
                    expected=readings[n],
                    read=readings[n] if n in (0, nearest) else {},
                    judged=value / 2 - 1,
                )
                for n, value in enumerate(found)
            ]
            chosen = candidates[nearest]
            made.append(
                Sample(
                    attribute="" if joint else "positivity",
                    level=0 if joint else level,
                    prompt=f"prompt {i % prompts}",
                    asked={"positivity": level, "verbosity": 2},
                    answer=chosen.answer,
                    read=chosen.read,
                    judged=chosen.judged,
                    candidates=candidates,
                )
            )
    return made


def steering_by_choice_only(**more: bool) -> list[Sample]:
    """A model that ignores its label and writes anything; the value model finds what was asked for among it."""
    return best_of(lambda level, numbers: numbers.uniform(0, 4), **more)


def steering_by_itself(**more: bool) -> list[Sample]:
    """A model that follows its label; the choice makes it a little better."""
    return best_of(lambda level, numbers: numbers.gauss(level, 0.4), **more)
