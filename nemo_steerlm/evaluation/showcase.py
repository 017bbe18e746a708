"""Answers side by side: the same question at an attribute's lowest and highest level, as they came."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from nemo_steerlm.evaluation.samples import Sample


class AnswerPair(NamedTuple):
    """Two answers of one model to one question."""

    attribute: str
    prompt: str
    lowest: Sample
    highest: Sample


def read_samples(path: Path, model: str) -> list[Sample]:
    """The samples of ``model`` in ``samples.jsonl``."""
    with path.open("rb") as file:
        found = [msgspec.json.decode(line, type=Sample) for line in file]
    return [sample for sample in found if sample.model == model]


def answer_pairs(samples: Sequence[Sample], count: int = 3) -> list[AnswerPair]:
    """The first ``count`` pairs, the attributes taking turns: nobody chose them."""
    names = dict.fromkeys(s.attribute for s in samples if not s.joint)
    by_attribute = {name: _pairs([s for s in samples if s.attribute == name]) for name in names}
    found: list[AnswerPair] = []
    place = 0
    while len(found) < count and any(place < len(pairs) for pairs in by_attribute.values()):
        found += [pairs[place] for pairs in by_attribute.values() if place < len(pairs)]
        place += 1
    return found[:count]


def _pairs(mine: Sequence[Sample]) -> list[AnswerPair]:
    levels = {s.level for s in mine}
    lowest, highest = ([s for s in mine if s.level == level] for level in (min(levels), max(levels)))
    return [AnswerPair(a.attribute, a.prompt, a, b) for a, b in zip(lowest, highest, strict=False) if a.prompt == b.prompt]
