"""Is what is written still text: variety, repetition, copies, cut answers."""

from __future__ import annotations

import itertools
import math
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
    perplexity: float | None = None
    """Of the answers together to the base model, per token; None where it was not measured."""


def fluency(
    answers: Sequence[str],
    finish: Sequence[str],
    training: Collection[str] | None = None,
    likelihoods: Sequence[tuple[float, int]] = (),
) -> Fluency:
    """Figures of ``answers``.

    Args:
        answers: Texts.
        finish: Why each ended (``stop`` or ``length``).
        training: The training texts, to find copies; None: not looked for.
        likelihoods: Negative log-likelihood and tokens of each answer to the base model; empty where it was not measured.

    Returns:
        The figures.
    """
    tokens = sum(count for _, count in likelihoods)
    pairs = Counter(pair for answer in answers for pair in _pairs(answer))
    count = max(1, len(answers))
    times = Counter(answers)
    return Fluency(
        distinct_2=len(pairs) / pairs.total() if pairs else None,
        duplicates=sum(n for n in times.values() if n > 1) / count,
        cut=sum(f == "length" for f in finish) / count,
        words=sum(len(answer.split()) for answer in answers) / count,
        perplexity=math.exp(sum(nll for nll, _ in likelihoods) / tokens) if tokens else None,
        copied=None if training is None else sum(answer in training for answer in answers) / count,
    )


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    return itertools.pairwise(text.casefold().split())
