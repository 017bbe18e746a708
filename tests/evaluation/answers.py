"""Answers of models whose figures are known: one that steers, and the quickstart's run that did not (its means and its noise)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

from nemo_steerlm.evaluation.samples import Sample

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
