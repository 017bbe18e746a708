"""Pairs of answers of which people preferred one: how often the value model agrees (RewardBench's accuracy, arXiv:2403.13787)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from nemo_steerlm.evaluation.intervals import Interval, Resamples


class PairFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Agreement of the value model with people's preferences."""

    count: int
    accuracy: Interval
    """Share of pairs whose preferred answer has the larger weighted sum of readings, ties counted half."""
    weights: dict[str, float]


def pair_figures(
    prompts: Sequence[str],
    chosen: Sequence[Mapping[str, float]],
    rejected: Sequence[Mapping[str, float]],
    weights: Mapping[str, float],
    seed: int = 0,
) -> PairFigures:
    """Figures of pairs.

    Args:
        prompts: Of each pair; those that share a prompt are drawn together for the interval.
        chosen: Readings (expected values by attribute) of the preferred answers.
        rejected: Readings of the others.
        weights: What a step of each attribute is worth.
        seed: Of the resamples.

    Returns:
        The accuracy with its interval.
    """
    margins = np.array([_worth(a, weights) - _worth(b, weights) for a, b in zip(chosen, rejected, strict=True)])
    right = (np.sign(margins) + 1) / 2
    again = Resamples(prompts, [0] * len(prompts), seed)
    accuracy = again.interval(lambda w: float((w * right).sum() / w.sum()))
    return PairFigures(count=len(prompts), accuracy=accuracy, weights=dict(weights))


def _worth(read: Mapping[str, float], weights: Mapping[str, float]) -> float:
    return sum(weight * read[name] for name, weight in weights.items())
