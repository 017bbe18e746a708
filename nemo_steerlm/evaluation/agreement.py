"""How well predictions agree with human labels: the figures, and for labels one table of counts an attribute, from which they follow."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from nemo_steerlm.core.attributes import AttributeSchema
from nemo_steerlm.core.files import atomic_write
from nemo_steerlm.core.labels import LANGUAGE_KEY, split
from nemo_steerlm.data.records import read_conversations
from nemo_steerlm.evaluation.rated_turns import places

Counts = npt.NDArray[np.int64]
"""[human value - low, predicted value - low]"""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """How near predictions are to human values."""

    count: int
    accuracy: float
    mae: float
    """Mean absolute error, in steps of the attribute's scale."""
    spearman: float | None
    """Rank correlation; None where either side never varies."""


def compare(truth: npt.ArrayLike, predicted: npt.ArrayLike, counts: npt.ArrayLike | None = None) -> Figures:
    """Figures of pairs of a human value and a prediction, each pair counted once or ``counts`` times.

    Predictions that are no whole numbers are rounded for accuracy only.
    """
    left, right = np.asarray(truth, dtype=float), np.asarray(predicted, dtype=float)
    weights = np.ones(left.shape) if counts is None else np.asarray(counts, dtype=float)
    total = weights.sum()
    return Figures(
        count=int(total),
        accuracy=float(weights[left == np.rint(right)].sum() / total),
        mae=float((weights * np.abs(left - right)).sum() / total),
        spearman=spearman(left, right, weights),
    )


def spearman(left: npt.ArrayLike, right: npt.ArrayLike, counts: npt.ArrayLike | None = None) -> float | None:
    """Spearman's rank correlation of pairs, ties at their mean rank. None where a side never changes."""
    weights = np.ones(np.shape(left)) if counts is None else np.asarray(counts, dtype=float)
    x, y = _ranks(left, weights), _ranks(right, weights)
    spread = float((weights * x * x).sum()) * float((weights * y * y).sum())
    return float((weights * x * y).sum() / spread**0.5) if spread else None


def _ranks(values: npt.ArrayLike, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The mean rank of each value, counted from the middle of all ranks."""
    _, which = np.unique(np.asarray(values, dtype=float), return_inverse=True)
    sizes = np.bincount(which, weights=weights)
    ranks: npt.NDArray[np.float64] = (np.cumsum(sizes) - sizes / 2 - weights.sum() / 2)[which]
    return ranks


class Agreement:
    """Counts of (human, predicted) pairs, attribute by attribute. Its size does not grow with the number of records."""

    def __init__(self, schema: AttributeSchema) -> None:
        self.schema = schema
        self.counts: dict[str, Counts] = {a.name: np.zeros((len(a.values), len(a.values)), dtype=np.int64) for a in schema.attributes}
        self.languages: collections.Counter[bool] = collections.Counter()
        """How often the language was right, and wrong."""

    def add(self, human: str, predicted: str) -> None:
        """Count one turn. What the human label does not say, or says in values that the schema does not have, is left out."""
        said, found = ({field.name: field for field in split(label)} for label in (human, predicted))
        for attribute in self.schema.attributes:
            levels = [fields[attribute.name].level for fields in (said, found) if attribute.name in fields]
            pair = tuple(level - attribute.low for level in levels if level is not None and level in attribute.values)
            if len(pair) == 2:
                self.counts[attribute.name][pair] += 1
        languages = [fields[LANGUAGE_KEY].text for fields in (said, found) if LANGUAGE_KEY in fields]
        if len(languages) == 2 and all(languages):
            self.languages[languages[0] == languages[1]] += 1

    def figures(self) -> dict[str, dict[str, Any]]:
        """For each attribute that was compared: number of turns, accuracy, mean absolute error, Spearman correlation, the counts."""
        found = {
            name: {**_figures(counts), "low": self.schema[name].low, "confusion": counts.tolist()}
            for name, counts in self.counts.items()
            if counts.any()
        }
        if self.languages:
            found[LANGUAGE_KEY] = {"turns": self.languages.total(), "accuracy": self.languages[True] / self.languages.total()}
        return found


def agreement_of(labelled: str | Path, schema: AttributeSchema) -> dict[str, dict[str, Any]]:
    """``Agreement.figures`` of a labelled file: predictions (``label``) against the human labels beside them (``gt_label``).

    A turn that several branches of a tree share is counted once.
    """
    counted = Agreement(schema)
    seen: set[int] = set()
    for conversation in read_conversations(labelled):
        for turn, place in zip(conversation.turns, places(turn.text for turn in conversation.turns), strict=True):
            if place not in seen and turn.label_source is not None and turn.gt_label is not None and turn.label is not None:
                seen.add(place)
                counted.add(turn.gt_label, turn.label)
    return counted.figures()


def plot(figures: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw each attribute's confusion counts as a square, shaded by their share of the row."""
    from matplotlib.figure import Figure

    tables = {name: np.array(found["confusion"]) for name, found in figures.items() if "confusion" in found}
    columns = min(4, max(1, len(tables)))
    rows = max(1, -(-len(tables) // columns))
    figure = Figure(figsize=(3 * columns, 3 * rows), layout="constrained")
    for place, (name, counts) in enumerate(tables.items(), 1):
        axes = figure.add_subplot(rows, columns, place)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", origin="lower")
        for row, column in np.argwhere(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=colour)
        low = figures[name]["low"]
        axes.set(title=name, xlabel="predicted", ylabel="human", xticks=range(len(counts)), yticks=range(len(counts)))
        axes.set_xticklabels([str(low + i) for i in range(len(counts))])
        axes.set_yticklabels([str(low + i) for i in range(len(counts))])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _figures(counts: Counts) -> dict[str, float | int | None]:
    human, predicted = np.indices(counts.shape)
    found = compare(human.ravel(), predicted.ravel(), counts.ravel())
    return {
        "turns": found.count,
        "accuracy": round(found.accuracy, 6),
        "mae": round(found.mae, 6),
        "spearman": None if found.spearman is None else round(found.spearman, 6),
    }


def write_figures(path: Path, figures: Mapping[str, Any]) -> None:
    """Write ``figures`` as JSON, whole or not at all."""
    import json

    with atomic_write(path) as file:
        file.write(json.dumps(figures, indent=2) + "\n")
