"""Label support: how often each value and combination of values was taught.

A model follows combinations that it has seen; under others it improvises (HelpSteer2, arXiv:2406.08673, appendix A, names this limitation).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from nemo_steerlm.core.attributes import AttributeSchema

MOST_COMBINATIONS = 1000
"""The most frequent ones that are kept: a dozen attributes may have as many combinations as there are records."""


class LabelSupport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Counts over the labels of learned turns, languages aside."""

    labels: int
    """How many labels were counted."""
    values: dict[str, list[int]]
    """By attribute name, how often each level from ``low`` to ``high`` was taught."""
    combinations: dict[str, int]
    """By label string without language, the most frequent first."""
    left_out: int = 0
    """Labels whose combination is too rare to be among ``combinations``."""
    unlabelled: int = 0
    """Learned turns that had no label at all."""
    partial: bool = False
    """Whether attributes were left out of labels at random, so that a label may name some of them only."""

    @classmethod
    def count(cls, schema: AttributeSchema, labels: Iterable[str], *, unlabelled: int = 0, partial: bool = False) -> LabelSupport:
        """Count label strings. Raises DataError for one that is not of the schema."""
        values = {a.name: [0] * len(a.values) for a in schema.attributes}
        combinations: Counter[str] = Counter()
        for label, times in Counter(labels).items():
            parsed = schema.parse(label).values
            combinations[schema.encode(parsed)] += times
            for name, value in parsed.items():
                values[name][value - schema[name].low] += times
        return cls._of(combinations, combinations.total(), values, unlabelled=unlabelled, partial=partial)

    @classmethod
    def _of(cls, combinations: Counter[str], labels: int, values: dict[str, list[int]], *, unlabelled: int, partial: bool) -> LabelSupport:
        kept = dict(combinations.most_common(MOST_COMBINATIONS))
        left_out = labels - sum(kept.values())
        return cls(labels=labels, values=values, combinations=kept, left_out=left_out, unlabelled=unlabelled, partial=partial)

    def __add__(self, other: LabelSupport) -> LabelSupport:
        """What a model was taught in two trainings, one after the other, under one schema."""
        return self._of(
            Counter(self.combinations) + Counter(other.combinations),
            self.labels + other.labels,
            {name: [a + b for a, b in zip(counts, other.values[name], strict=True)] for name, counts in self.values.items()},
            unlabelled=self.unlabelled + other.unlabelled,
            partial=self.partial or other.partial,
        )


class TaughtLabels:
    """Answers questions about a model's label support."""

    def __init__(self, schema: AttributeSchema, support: LabelSupport) -> None:
        """Take the combinations apart once."""
        self.support = support
        self._taught = [(schema.parse(label).values, count) for label, count in support.combinations.items()]

    def count(self, values: Mapping[str, int]) -> int:
        """How often labels with these values were taught. One that names some attributes only is part of all that agree with it."""
        return sum(count for taught, count in self._taught if values.items() <= taught.items())

    def nearest(self, values: Mapping[str, int]) -> dict[str, int]:
        """The taught combination with the fewest steps to ``values``, of several the most frequent; empty where nothing was taught.

        An attribute that a combination does not name is no step away.
        """

        def rank(taught: Mapping[str, int], count: int) -> tuple[int, int]:
            return sum(abs(taught.get(name, value) - value) for name, value in values.items()), -count

        return min(self._taught, key=lambda entry: rank(*entry), default=({}, 0))[0]
