"""Is what is written still text: variety, repetition, copies, cut answers."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

import msgspec


class Fluency(msgspec.Struct, frozen=True, kw_only=True):
    """Of a set of answers."""

    distinct_2: float | None
    """Distinct pairs of words over all pairs of words (Li et al. 2016); None where no answer has two words. It falls with more answers."""
    duplicates: float
    """Share of answers that another answer of the set equals."""
    cut: float
    """Share of answers that were cut at the longest allowed."""
    words: float
    """Mean length."""
    copied: float | None = None
    """Share of answers that are a training text, word for word; None where none were given."""


def fluency(answers: Sequence[str], finish: Sequence[str], training: Collection[str] | None = None) -> Fluency:
    """Figures of ``answers``, of which ``finish`` says why each ended (``stop`` or ``length``)."""
    pairs = Counter(pair for answer in answers for pair in _pairs(answer))
    count = max(1, len(answers))
    times = Counter(answers)
    return Fluency(
        distinct_2=len(pairs) / pairs.total() if pairs else None,
        duplicates=sum(n for n in times.values() if n > 1) / count,
        cut=sum(f == "length" for f in finish) / count,
        words=sum(len(answer.split()) for answer in answers) / count,
        copied=None if training is None else sum(answer in training for answer in answers) / count,
    )


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    return itertools.pairwise(text.casefold().split())
