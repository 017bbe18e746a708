"""Plots as inline SVG: asked against read, cross-talk, reliability, agreement, training losses. Legends stand outside the axes."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nemo_steerlm.evaluation.control import Control, cross_talk
from nemo_steerlm.evaluation.value_model import AttributeCheck

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

READ = "#2f6db5"
JUDGED = "#d1642a"
QUIET = "#7a8591"
READABLE = 45
"""Points of the screen for an inch of a plot, of which it has 72, below which its letters become too small."""
COLUMNS = 3
"""Plots side by side."""


def read_plot(table: Sequence[Control]) -> str:
    """One plot an attribute: asked level against what the value model reads, with the line on which both are the same."""
    figure, axes = _grid(len(table), height=3.0)
    for axis, entry in zip(axes, table, strict=False):
        asked = [level.level for level in entry.levels]
        axis.plot(asked, asked, color=QUIET, linestyle=":", linewidth=1.4, label="as asked")
        axis.plot(asked, [level.read for level in entry.levels], color=READ, marker="o", label="value model reads")
        if entry.single:
            axis.plot(asked, [level.read for level in entry.single.levels], color=READ, linestyle="--", marker=".", label="single answers")
        low, high = asked[0], asked[-1]
        axis.set(title=entry.attribute, xlabel="asked", ylabel="read", xticks=asked, ylim=(low - 0.3, high + 0.3))
    _legend(figure, axes)
    return _svg(figure)


def judged_plot(table: Sequence[Control]) -> str | None:
    """The same by the judge that took no part in training, with what it says of the texts that were taught. None where there is none."""
    judged = [entry for entry in table if entry.judge]
    if not judged:
        return None
    figure, axes = _grid(len(judged), height=3.0)
    for axis, entry in zip(axes, judged, strict=False):
        asked = [level.level for level in entry.levels]
        taught = [(level.level, level.taught) for level in entry.levels if level.taught is not None]
        axis.plot([a for a, _ in taught], [t for _, t in taught], color=QUIET, linestyle=":", linewidth=1.4, label="training texts")
        errors = [level.judged_error or 0.0 for level in entry.levels]
        axis.errorbar(
            asked, [level.judged or 0.0 for level in entry.levels], yerr=errors, color=JUDGED, marker="s", capsize=2, label="answers"
        )
        if entry.single:
            alone = [level.judged or 0.0 for level in entry.single.levels]
            axis.plot(asked, alone, color=JUDGED, linestyle="--", marker=".", label="single answers")
        axis.set(title=entry.attribute, xlabel="asked", ylabel=entry.judge, xticks=asked)
    _legend(figure, axes)
    return _svg(figure)


def cross_talk_plot(table: Sequence[Control]) -> str:
    """The slope of every attribute's reading (columns) under each asked attribute (rows), as a heat map; ideal is the unit matrix."""
    matrix = cross_talk(table)
    rows = list(matrix)
    columns = list(dict.fromkeys([*rows, *(name for found in matrix.values() for name in found)]))
    size = (1.8 + 0.75 * len(columns), 1.5 + 0.55 * len(rows))
    figure, (axis,) = _grid(1, height=size[1], columns=1, width=size[0])
    values = [[matrix[row].get(column, 0.0) for column in columns] for row in rows]
    axis.imshow(values, vmin=-1, vmax=1, cmap="RdBu", aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            axis.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if abs(value) > 0.6 else "black")
    axis.set(xticks=range(len(columns)), yticks=range(len(rows)), xlabel="read", ylabel="asked")
    axis.set_xticklabels(columns, rotation=30, ha="right")
    axis.set_yticklabels(rows)
    axis.grid(visible=False)
    return _svg(figure)


def reliability_plot(checks: Mapping[str, AttributeCheck]) -> str | None:
    """Probability of the likeliest value against how often it is right, by attribute. None where no probabilities were read."""
    read = {name: check.calibration for name, check in checks.items() if check.calibration}
    if not read:
        return None
    figure, axes = _grid(len(read), height=3.0)
    for axis, (name, found) in zip(axes, read.items(), strict=False):
        axis.plot([0, 1], [0, 1], color=QUIET, linestyle=":", linewidth=1.4, label="calibrated")
        most = max(b.count for b in found.bins)
        axis.plot([b.confidence for b in found.bins], [b.accuracy for b in found.bins], color=READ, linewidth=1, label="value model")
        axis.scatter(
            [b.confidence for b in found.bins],
            [b.accuracy for b in found.bins],
            s=[12 + 90 * b.count / most for b in found.bins],
            color=READ,
        )
        axis.set(title=f"{name} (ECE {found.ece:.2f})", xlabel="probability", ylabel="share right", xlim=(0, 1.03), ylim=(0, 1.03))
    _legend(figure, axes)
    return _svg(figure)


def agreement_plot(checks: Mapping[str, AttributeCheck]) -> str:
    """Mean absolute error by attribute: value model, ridge on words, commonest value."""
    figure, (axis,) = _grid(1, height=0.9 + 0.5 * len(checks), columns=1)
    names = list(checks)
    rows = range(len(names))
    for shift, color, label in ((-0.26, READ, "value model"), (0.0, JUDGED, "ridge on words"), (0.26, QUIET, "commonest value")):
        found = [{"value model": c.model, "ridge on words": c.ridge, "commonest value": c.majority}[label] for c in checks.values()]
        axis.barh([r + shift for r in rows], [f.mae if f else 0.0 for f in found], height=0.24, color=color, label=label)
    axis.set(yticks=list(rows), yticklabels=names, xlabel="mean absolute error (steps of the scale; shorter is better)")
    axis.invert_yaxis()
    _legend(figure, [axis])
    return _svg(figure)


def loss_plot(curves: Mapping[str, Sequence[float]]) -> str:
    """Training loss by step, one plot a training."""
    figure, axes = _grid(len(curves), height=2.6)
    for axis, (name, losses) in zip(axes, curves.items(), strict=False):
        axis.plot(range(1, len(losses) + 1), losses, color=READ, linewidth=1)
        axis.set(title=name, xlabel="step", ylabel="loss")
    return _svg(figure)


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """Above all axes, where no data is."""
    handles, labels = axes[0].get_legend_handles_labels()
    side_by_side = min(len(labels), int(figure.get_figwidth() // 2))
    figure.legend(handles, labels, fontsize=10, frameon=False, loc="outside upper center", ncols=side_by_side)


def _grid(count: int, *, height: float, columns: int = COLUMNS, width: float = 8.0) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    wide = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.2 * wide if columns > 1 else width, height * rows), layout="constrained")
    axes = [figure.add_subplot(rows, wide, i + 1) for i in range(count)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(visible=True, color="#e4e8ec", linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure) -> str:
    import matplotlib as mpl

    buffer = io.StringIO()
    # A fixed salt and no date: the same figures give the same bytes.
    with mpl.rc_context({"svg.hashsalt": "steerlm", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    # On a phone it scrolls, rather than becoming too small to read.
    readable = f'<svg style="min-width: {READABLE * figure.get_figwidth():.0f}pt"'
    return re.sub(r"^.*?<svg", readable, buffer.getvalue(), count=1, flags=re.DOTALL)
