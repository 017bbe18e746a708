"""Are a value model's probabilities to be believed."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

BINS = 10


class Bin(msgspec.Struct, frozen=True, kw_only=True):
    """Predictions whose probability of the likeliest value lies in one tenth."""

    count: int
    confidence: float
    """Mean probability of the likeliest value."""
    accuracy: float
    """Share of them that were right."""


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Probabilities of one attribute's values against human values."""

    count: int
    ece: float
    """Expected calibration error (Guo et al. 2017): mean over predictions of ``|confidence - accuracy|`` of their tenth."""
    brier: float
    """Mean over predictions of the squared distance between probabilities and the truth (Brier 1950); 0 best, 2 worst."""
    nll: float
    """Mean negative log-probability of the human value, in nats."""
    rps: float
    """Ranked probability score: mean squared distance of cumulative probabilities, over the number of steps; near misses cost less."""
    bins: list[Bin]
    """Those that have predictions, ascending: the reliability plot."""


def calibration(truth: Sequence[int], probabilities: npt.ArrayLike, low: int = 0) -> Calibration:
    """``probabilities`` [predictions, values] of values from ``low`` upwards, each row summing to 1, against ``truth``."""
    chances = np.asarray(probabilities, dtype=float)
    rows = np.arange(len(truth))
    right = np.zeros_like(chances)
    right[rows, np.asarray(truth) - low] = 1.0
    confidence, correct = chances.max(axis=1), right[rows, chances.argmax(axis=1)]
    which = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = [
        Bin(count=int(inside.sum()), confidence=float(confidence[inside].mean()), accuracy=float(correct[inside].mean()))
        for b in range(BINS)
        if (inside := which == b).any()
    ]
    steps = max(1, chances.shape[1] - 1)
    return Calibration(
        count=len(truth),
        ece=sum(b.count * abs(b.confidence - b.accuracy) for b in bins) / len(truth),
        brier=float(((chances - right) ** 2).sum(axis=1).mean()),
        nll=float(-np.log(np.maximum((chances * right).sum(axis=1), 1e-12)).mean()),
        rps=float((((chances - right).cumsum(axis=1)[:, :-1]) ** 2).sum(axis=1).mean() / steps),
        bins=bins,
    )
