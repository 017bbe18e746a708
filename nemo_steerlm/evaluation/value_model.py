"""The value model against people, beside what can be had without a language model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from nemo_steerlm.core.attributes import AttributeSchema
from nemo_steerlm.evaluation.agreement import Figures, compare
from nemo_steerlm.evaluation.calibration import Calibration, calibration
from nemo_steerlm.evaluation.rated_turns import RatedTurn

Probabilities = Mapping[str, Sequence[float]]
"""By attribute, of each of its values, ascending."""


class AttributeCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One attribute's agreement on held-out turns: the value model, always the commonest value, and ridge regression on words."""

    model: Figures
    """The likeliest value."""
    majority: Figures
    ridge: Figures | None
    """None where there are too few labelled texts to fit it."""
    expected: Figures | None = None
    """The expected value, a real number as ridge's is; None where probabilities were not read."""
    calibration: Calibration | None = None


def check_value_model(
    taught: Sequence[RatedTurn],
    held_out: Sequence[RatedTurn],
    predicted: Sequence[Mapping[str, int]],
    schema: AttributeSchema,
    probabilities: Mapping[int, Probabilities] | None = None,
) -> dict[str, AttributeCheck]:
    """Agreement by attribute on the held-out turns that have a human value and a prediction for it.

    ``taught`` is what the value model learned from; both baselines are fitted on it. ``probabilities`` belong to the
    held-out turns at their positions; expected values and calibration are computed over these.
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
        read = [(held_out[i].values[name], p[name]) for i, p in (probabilities or {}).items() if name in held_out[i].values and name in p]
        rated, chances = [t for t, _ in read], [p for _, p in read]
        checks[name] = AttributeCheck(
            model=compare(truth, [p for _, p in known]),
            majority=compare(truth, [common] * len(truth)),
            ridge=None if guesses is None else compare(truth, [min(max(g, attribute.low), attribute.high) for g in guesses]),
            expected=compare(rated, np.asarray(chances) @ np.array(attribute.values)) if read else None,
            calibration=calibration(rated, chances, attribute.low) if read else None,
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
