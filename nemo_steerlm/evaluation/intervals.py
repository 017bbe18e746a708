"""Intervals by bootstrap over prompts: answers to one prompt are not independent, so prompts are drawn again, not answers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

ResampleWeights = npt.NDArray[np.float64]
"""How often each answer counts in one resample."""
Statistic = Callable[[ResampleWeights], float | None]

RESAMPLES = 400
CONFIDENCE = 0.95
FEWEST_PROMPTS = 10
"""With fewer distinct prompts there is nothing to draw from: answers of each level are drawn instead."""


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A figure and its 95 % interval. Both ends are None where too few resamples have the figure."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Resamples:
    """The same draws for every figure of one set of answers, so that differences of figures are paired."""

    def __init__(self, prompts: Sequence[Hashable], strata: Sequence[Hashable], seed: int = 0) -> None:
        """``prompts``: each answer's prompt; ``strata``: its level, within which answers are drawn where prompts are too few."""
        units = prompts if len(set(prompts)) >= FEWEST_PROMPTS else None
        numbers = np.random.default_rng(seed)
        self.count = len(prompts)
        self.weights: list[ResampleWeights] = [
            _by_unit(units, numbers) if units is not None else _by_stratum(strata, numbers) for _ in range(RESAMPLES if prompts else 0)
        ]

    def interval(self, statistic: Statistic) -> Interval:
        """The percentile interval of ``statistic``, a function of the answers' weights that is None where it is not defined."""
        if not self.count:
            return Interval(value=None)
        value = statistic(np.ones(self.count))
        found = [v for weights in self.weights if (v := statistic(weights)) is not None]
        if value is None or len(found) < RESAMPLES // 2:
            return Interval(value=value)
        tail = 100 * (1 - CONFIDENCE) / 2
        low, high = np.percentile(found, [tail, 100 - tail])
        return Interval(value=value, low=float(low), high=float(high))


def _by_unit(units: Sequence[Hashable], numbers: np.random.Generator) -> ResampleWeights:
    names = {unit: i for i, unit in enumerate(dict.fromkeys(units))}
    times = np.bincount(numbers.integers(len(names), size=len(names)), minlength=len(names))
    return times[[names[unit] for unit in units]].astype(float)


def _by_stratum(strata: Sequence[Hashable], numbers: np.random.Generator) -> ResampleWeights:
    weights = np.zeros(len(strata))
    for stratum in dict.fromkeys(strata):
        members = np.array([i for i, s in enumerate(strata) if s == stratum])
        np.add.at(weights, numbers.choice(members, size=len(members)), 1.0)
    return weights
