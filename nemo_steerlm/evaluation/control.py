"""Does what is asked for come out: figures of control, computed from answers and readings.

Definitions: control error, hit rate and cross-talk as in 2505.23816 ("steering error"), in steps of an attribute's scale. AUC of two
neighbouring levels is the probability that an answer asked for at the upper one is read higher (Mann and Whitney's U, ties count half).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from nemo_steerlm.evaluation.agreement import spearman
from nemo_steerlm.evaluation.fluency import Fluency, fluency
from nemo_steerlm.evaluation.intervals import Interval, Resamples, ResampleWeights
from nemo_steerlm.evaluation.samples import Sample, candidates_of

Numbers = npt.NDArray[np.float64]

TOLD_APART = 0.6
"""Neighbouring levels with a smaller AUC are not told apart: of two answers, one of each, the upper reads lower in two of five."""


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """The answers asked for at one level."""

    level: int
    count: int
    read: float
    """Mean expected value as the value model reads the answers."""
    judged: float | None
    judged_error: float | None
    """Standard error of ``judged``."""
    taught: float | None
    """What the judge says of training texts that carry this level: what the model was taught, and the most it can reach."""
    fluency: Fluency


class Neighbours(msgspec.Struct, frozen=True, kw_only=True):
    """How well two neighbouring levels are told apart."""

    lower: int
    upper: int
    read: Interval
    """AUC by the value model's readings."""
    judged: Interval | None
    """AUC by the other judge."""

    @property
    def worst(self) -> float:
        """The smaller AUC of the two."""
        found = [side.value for side in (self.read, self.judged) if side is not None and side.value is not None]
        return min(found, default=math.nan)

    @property
    def alike(self) -> bool:
        """Whether a witness cannot tell the two apart: too small an AUC, or one that chance reaches."""
        sides = [side for side in (self.read, self.judged) if side is not None and side.value is not None]
        return any(side.value < TOLD_APART or (side.low is not None and side.low <= 0.5) for side in sides if side.value is not None)

    @property
    def reversed(self) -> bool:
        """Whether a witness reads the upper one lower, beyond chance."""
        return any(side is not None and side.high is not None and side.high < 0.5 for side in (self.read, self.judged))


class Control(msgspec.Struct, frozen=True, kw_only=True):
    """How well one attribute is controlled."""

    attribute: str
    judge: str | None
    levels: list[Level]
    error: Interval
    """Mean over answers of ``|read - asked|``, in steps."""
    hit_rate: float
    """Share of answers whose reading rounds to what was asked."""
    slope: float | None
    """Of reading on asked; 1 is ideal."""
    range: float
    """Mean reading at the highest level less that at the lowest, in steps."""
    rank_read: Interval
    """Spearman of asked and reading over single answers."""
    rank_judged: Interval | None
    """The same by the other judge."""
    neighbours: list[Neighbours]
    cross_talk: dict[str, float]
    """Slope of each other attribute's reading on what was asked of this one; 0 is ideal."""
    spearman_read: float | None
    """Spearman of asked and mean reading over levels. It saturates: 1 says no more than that the means are in order."""
    spearman_judged: float | None
    """The same by the other judge."""
    best_of: int = 1
    """Of how many candidates each answer is the one that the value model chose."""
    single: Control | None = None
    """The same figures of the first candidates, which nobody chose: what the model does by itself. None where nothing was chosen."""

    @property
    def unaided(self) -> Control:
        """Of answers that nobody chose."""
        return self.single or self

    @property
    def worst_neighbours(self) -> Neighbours:
        """The pair with the smallest AUC."""
        return min(self.neighbours, key=lambda pair: pair.worst)

    @property
    def alike(self) -> list[Neighbours]:
        """Neighbouring levels that are not told apart."""
        return [pair for pair in self.neighbours if pair.alike]


class Joint(msgspec.Struct, frozen=True, kw_only=True):
    """Joint requests whose combination of values was taught about equally often."""

    taught: str
    """How often: ``never``, ``1 to 9 times``, ``10 times or more``."""
    count: int
    error: Interval
    """Mean over answers and attributes of ``|read - asked|``, in steps."""
    single: Interval | None = None
    """The same of the first candidates, which nobody chose; None where nothing was chosen."""


def control(
    samples: Sequence[Sample],
    judges: Mapping[str, str],
    taught: Mapping[str, Mapping[int, float]] | None = None,
    training: Collection[str] | None = None,
    seed: int = 0,
) -> list[Control]:
    """One entry for each steered attribute, in order of first appearance, from one model's ``samples``.

    ``judges`` names the judge of an attribute; ``taught`` has what it says of training texts, by attribute and level; ``training`` has the
    training texts, for the share of answers that are copies.
    """
    names = dict.fromkeys(s.attribute for s in samples if not s.joint)
    found = []
    for name in names:
        mine = [s for s in samples if s.attribute == name]
        count = candidates_of(mine)
        one, *rest = (
            _control(name, made, judges.get(name), _levels(made, (taught or {}).get(name, {}), training), seed)
            for made in ([mine, [s.single for s in mine]] if count > 1 else [mine])
        )
        found.append(msgspec.structs.replace(one, best_of=count, single=next(iter(rest), None)))
    return found


def _control(attribute: str, mine: Sequence[Sample], judge: str | None, levels: list[Level], seed: int) -> Control:
    asked = np.array([s.level for s in mine], dtype=float)
    read = np.array([s.read[attribute] for s in mine])
    judged = np.array([s.judged for s in mine], dtype=float) if all(s.judged is not None for s in mine) else None
    again = Resamples([s.prompt for s in mine], [s.level for s in mine], seed)
    asked_levels = [level.level for level in levels]
    return Control(
        attribute=attribute,
        judge=judge,
        levels=levels,
        error=again.interval(lambda w: float((w * np.abs(read - asked)).sum() / w.sum())),
        hit_rate=float(np.mean(_rounded(read) == asked)),
        slope=slope(asked, read),
        range=levels[-1].read - levels[0].read,
        rank_read=again.interval(lambda w: spearman(asked, read, w)),
        rank_judged=None if judged is None else again.interval(lambda w: spearman(asked, judged, w)),
        neighbours=[_neighbours(a, b, asked, read, judged, again) for a, b in itertools.pairwise(asked_levels)],
        cross_talk={
            other: found
            for other in mine[0].read
            if other != attribute and (found := slope(asked, np.array([s.read[other] for s in mine]))) is not None
        },
        spearman_read=spearman(asked_levels, [level.read for level in levels]),
        spearman_judged=None if judged is None else spearman(asked_levels, [level.judged or 0.0 for level in levels]),
    )


def _rounded(values: Numbers) -> Numbers:
    """To the nearest whole number, halves upwards (``numpy.rint`` rounds them to even)."""
    rounded: Numbers = np.floor(values + 0.5)
    return rounded


def slope(asked: npt.ArrayLike, read: npt.ArrayLike) -> float | None:
    """Of the least squares line of ``read`` on ``asked``; None where only one thing was asked."""
    x, y = np.asarray(asked, dtype=float), np.asarray(read, dtype=float)
    spread = float(((x - x.mean()) ** 2).sum())
    return float(((x - x.mean()) * (y - y.mean())).sum() / spread) if spread else None


def auc(lower: npt.ArrayLike, upper: npt.ArrayLike, weights: tuple[ResampleWeights, ResampleWeights] | None = None) -> float | None:
    """The probability that one of ``upper`` is larger than one of ``lower``, ties counted half; None where a side has no weight."""
    a, b = np.asarray(lower, dtype=float), np.asarray(upper, dtype=float)
    above = (np.sign(b[None, :] - a[:, None]) + 1) / 2
    left, right = weights or (np.ones(len(a)), np.ones(len(b)))
    total = left.sum() * right.sum()
    return float(left @ above @ right / total) if total else None


def _neighbours(lower: int, upper: int, asked: Numbers, read: Numbers, judged: Numbers | None, again: Resamples) -> Neighbours:
    below, above = asked == lower, asked == upper

    def interval(values: Numbers) -> Interval:
        return again.interval(lambda w: auc(values[below], values[above], (w[below], w[above])))

    return Neighbours(lower=lower, upper=upper, read=interval(read), judged=None if judged is None else interval(judged))


def _levels(mine: Sequence[Sample], taught: Mapping[int, float], training: Collection[str] | None) -> list[Level]:
    return [_level(level, [s for s in mine if s.level == level], taught.get(level), training) for level in sorted({s.level for s in mine})]


def _level(level: int, samples: Sequence[Sample], taught: float | None, training: Collection[str] | None) -> Level:
    judged = [s.judged for s in samples if s.judged is not None]
    return Level(
        level=level,
        count=len(samples),
        read=float(np.mean([s.read[s.attribute] for s in samples])),
        judged=float(np.mean(judged)) if judged else None,
        judged_error=float(np.std(judged, ddof=1) / math.sqrt(len(judged))) if len(judged) > 1 else None,
        taught=taught,
        fluency=fluency(
            [s.answer for s in samples],
            [s.finish for s in samples],
            training,
            [(s.nll, s.tokens) for s in samples if s.nll is not None],
        ),
    )


def cross_talk(table: Sequence[Control]) -> dict[str, dict[str, float]]:
    """Slope of the reading of every attribute (columns) under each asked attribute (rows); ideal is 1 where they are the same, else 0."""
    return {c.attribute: {c.attribute: c.slope or 0.0, **c.cross_talk} for c in table}


def joint(samples: Sequence[Sample], taught: Mapping[str, int], label: Mapping[int, str], seed: int = 0) -> list[Joint]:
    """Control error of joint requests by how often their combination was taught.

    ``label`` has the combination of each of ``samples``, by position; ``taught`` how often training labels had a combination.
    """
    groups: dict[str, list[Sample]] = {"never": [], "1 to 9 times": [], "10 times or more": []}
    for i, sample in enumerate(samples):
        times = taught.get(label[i], 0)
        groups["never" if not times else "1 to 9 times" if times < 10 else "10 times or more"].append(sample)
    found = []
    for name, mine in groups.items():
        if mine:
            single = _error([s.single for s in mine], seed) if candidates_of(mine) > 1 else None
            found.append(Joint(taught=name, count=len(mine), error=_error(mine, seed), single=single))
    return found


def _error(samples: Sequence[Sample], seed: int) -> Interval:
    errors = np.array([np.mean([abs(s.read[n] - value) for n, value in s.wanted.items() if n in s.read]) for s in samples])
    again = Resamples([s.prompt for s in samples], [0] * len(samples), seed)
    return again.interval(lambda w: float((w * errors).sum() / w.sum()))


def difference(before: Sequence[Sample], after: Sequence[Sample], attribute: str, seed: int = 0) -> Interval:
    """Control error of ``after`` less that of ``before``, answer for answer: the same prompts, levels and seeds under two models.

    Below 0 is better. The interval is by bootstrap over prompts of the paired differences.
    """
    first, second = ([s for s in samples if s.attribute == attribute] for samples in (before, after))
    pairs = list(zip(first, second, strict=True))
    gained = np.array([abs(b.read[attribute] - b.level) - abs(a.read[attribute] - a.level) for a, b in pairs])
    again = Resamples([a.prompt for a, _ in pairs], [a.level for a, _ in pairs], seed)
    return again.interval(lambda w: float((w * gained).sum() / w.sum()))
