"""Figures of the evaluate stage, free of HTTP and models: agreement with people, baselines, judges, and the steering table."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np

from nemo_steerlm.core.attributes import AttributeSchema
from nemo_steerlm.evaluation.agreement import Figures, compare, spearman

JudgeName = Literal["words", "characters", "vader"]


class AttributeCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One attribute's agreement on held-out turns: the value model, always the commonest value, and ridge regression on words."""

    model: Figures
    majority: Figures
    ridge: Figures | None
    """None where there are too few labelled texts to fit it."""


class RatedText(msgspec.Struct, frozen=True, kw_only=True):
    """A turn's text and its human values."""

    text: str
    values: dict[str, int]


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One answer that was asked for with ``attribute`` at ``level``, and what the judges made of it."""

    attribute: str
    level: int
    prompt: str
    answer: str
    read: dict[str, float] = {}
    """Expected value of each attribute, as the value model reads the answer."""
    judged: float | None = None
    """What the judge that took no part in training says, in the judge's own unit."""


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """The answers asked for at one level."""

    level: int
    count: int
    read: float
    """Mean expected value as the value model reads the answers."""
    judged: float | None
    judged_error: float | None
    """Standard error of ``judged``."""


class Steering(msgspec.Struct, frozen=True, kw_only=True):
    """Does what is asked for come out, for one attribute."""

    attribute: str
    judge: str | None
    levels: list[Level]
    spearman_read: float | None
    """Asked level against the mean reading, over the levels."""
    spearman_judged: float | None
    """Asked level against the mean judgement, over the levels."""
    spearman_samples: float | None
    """Asked level against the judgement (the reading where there is no judge), over single answers."""


def check_value_model(
    taught: Sequence[RatedText], held_out: Sequence[RatedText], predicted: Sequence[Mapping[str, int]], schema: AttributeSchema
) -> dict[str, AttributeCheck]:
    """Agreement by attribute on the held-out turns that have a human value and a prediction for it.

    ``taught`` is what the value model learned from; both baselines are fitted on it.
    """
    checks = {}
    for attribute in schema.attributes:
        name = attribute.name
        known = [(t, p[name]) for t, p in zip(held_out, predicted, strict=True) if name in t.values and name in p]
        lessons = [t for t in taught if name in t.values]
        if not known or not lessons:
            continue
        truth = [t.values[name] for t, _ in known]
        common = Counter(t.values[name] for t in lessons).most_common(1)[0][0]
        guesses = ridge([t.text for t in lessons], [t.values[name] for t in lessons], [t.text for t, _ in known])
        checks[name] = AttributeCheck(
            model=compare(truth, [p for _, p in known]),
            majority=compare(truth, [common] * len(truth)),
            ridge=None if guesses is None else compare(truth, [min(max(g, attribute.low), attribute.high) for g in guesses]),
        )
    return checks


def ridge(texts: Sequence[str], values: Sequence[int], unseen: Sequence[str]) -> list[float] | None:
    """Ridge regression on tf-idf of words and pairs, and the text's length: what can be had without a language model."""
    if len(texts) < 8:
        return None
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge

    words = r"(?u)\b\w+\b|[^\w\s]"
    vectors = TfidfVectorizer(ngram_range=(1, 2), min_df=2 if len(texts) >= 50 else 1, max_features=50_000, token_pattern=words)

    def features(batch: Sequence[str], matrix: csr_matrix) -> csr_matrix:
        lengths = [[math.log1p(len(text.split()))] for text in batch]
        return hstack([matrix, csr_matrix(lengths)]).tocsr()

    try:
        known = features(texts, vectors.fit_transform(texts))
    except ValueError:  # no word occurs often enough
        return None
    model = Ridge(alpha=1.0).fit(known, np.asarray(values, dtype=float))
    return [float(v) for v in model.predict(features(unseen, vectors.transform(unseen)))]


def judge(name: JudgeName) -> Callable[[str], float]:
    """A judge that took no part in training: words, characters, or VADER's compound sentiment (-1 to 1)."""
    if name == "words":
        return lambda text: float(len(text.split()))
    if name == "characters":
        return lambda text: float(len(text))
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    return lambda text: float(analyzer.polarity_scores(text)["compound"])


def steering(samples: Sequence[Sample], judges: Mapping[str, str]) -> list[Steering]:
    """The steering table: one entry an attribute, in order of first appearance."""
    table = []
    for attribute in dict.fromkeys(s.attribute for s in samples):
        mine = [s for s in samples if s.attribute == attribute]
        levels = [_level(level, [s for s in mine if s.level == level]) for level in sorted({s.level for s in mine})]
        asked = [float(level.level) for level in levels]
        judged = [level.judged for level in levels if level.judged is not None]
        table.append(
            Steering(
                attribute=attribute,
                judge=judges.get(attribute),
                levels=levels,
                spearman_read=spearman(asked, [level.read for level in levels]),
                spearman_judged=spearman(asked, judged) if len(judged) == len(asked) else None,
                spearman_samples=spearman([s.level for s in mine], [_say(s) for s in mine]),
            )
        )
    return table


def _say(sample: Sample) -> float:
    return sample.read[sample.attribute] if sample.judged is None else sample.judged


def _level(level: int, samples: Sequence[Sample]) -> Level:
    judged = [s.judged for s in samples if s.judged is not None]
    return Level(
        level=level,
        count=len(samples),
        read=float(np.mean([s.read[s.attribute] for s in samples])),
        judged=float(np.mean(judged)) if judged else None,
        judged_error=float(np.std(judged, ddof=1) / math.sqrt(len(judged))) if len(judged) > 1 else None,
    )


def spread(prompts: Sequence[object], count: int, seed: int) -> list[int]:
    """``count`` positions in ``prompts``, every prompt used equally often, in an order that depends on ``seed`` only."""
    order = list(range(len(prompts)))
    random.Random(seed).shuffle(order)
    return [order[i % len(order)] for i in range(count)]


def summary(checks: Mapping[str, AttributeCheck], table: Sequence[Steering]) -> str:
    """What ``steerlm run`` prints at the end."""
    lines = ["Value model against held-out human labels (accuracy / mean absolute error / Spearman)"]
    if checks:
        lines.append(f"  {'attribute':18} {'turns':>6}   {'value model':22} {'ridge on words':22} {'commonest value':22}")
    lines += [
        f"  {name:18} {c.model.count:6}   {_short(c.model):22} {_short(c.ridge):22} {_short(c.majority):22}" for name, c in checks.items()
    ]
    lines += ["", "Steering: what was asked for, and what came out"]
    for entry in table:
        unit = f", by {entry.judge}" if entry.judge else ""
        lines.append(f"  {entry.attribute} ({entry.levels[0].count} answers a level)")
        lines.append("    asked            " + "".join(f"{level.level:9}" for level in entry.levels) + "   Spearman")
        lines.append(
            "    value model      " + "".join(f"{level.read:9.2f}" for level in entry.levels) + f"   {_number(entry.spearman_read)}"
        )
        if entry.judge:
            row = "".join(f"{level.judged:9.2f}" for level in entry.levels)
            lines.append(f"    judged{unit:11}" + row + f"   {_number(entry.spearman_judged)}")
    return "\n".join(lines) + "\n"


def _short(found: Figures | None) -> str:
    return "-" if found is None else f"{found.accuracy:.2f} / {found.mae:.2f} / {_number(found.spearman)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
