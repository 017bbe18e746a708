"""Plots as inline SVG: steering curves, agreement, training losses."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nemo_steerlm.evaluation.metrics import AttributeCheck, Steering

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

READ = "#2f6db5"
JUDGED = "#d1642a"
QUIET = "#9aa3ad"
COLUMNS = 3
"""Plots side by side."""


def steering_plot(table: Sequence[Steering]) -> str:
    """One small plot an attribute: asked level against what the value model reads, and what the other judge says."""
    figure, axes = _grid(len(table), height=3.0)
    for axis, entry in zip(axes, table, strict=False):
        asked = [level.level for level in entry.levels]
        axis.plot(asked, asked, color=QUIET, linestyle=":", linewidth=1, label="as asked")
        axis.plot(asked, [level.read for level in entry.levels], color=READ, marker="o", label="value model reads")
        axis.set(title=entry.attribute, xlabel="asked", ylabel="read", xticks=asked)
        handles, labels = axis.get_legend_handles_labels()
        if entry.judge:
            other = axis.twinx()
            judged = [level.judged or 0.0 for level in entry.levels]
            errors = [level.judged_error or 0.0 for level in entry.levels]
            other.errorbar(asked, judged, yerr=errors, color=JUDGED, marker="s", capsize=2, label=f"{entry.judge} judges")
            other.set_ylabel(entry.judge, color=JUDGED)
            more, names = other.get_legend_handles_labels()
            handles, labels = [*handles, *more], [*labels, *names]
            other.spines[["top"]].set_visible(False)
        if entry is table[0]:
            axis.legend(handles, labels, fontsize=8, frameon=False, loc="upper left")
    return _svg(figure)


def agreement_plot(checks: Mapping[str, AttributeCheck]) -> str:
    """Mean absolute error by attribute: value model, ridge on words, commonest value."""
    figure, (axis,) = _grid(1, height=0.6 + 0.5 * len(checks), columns=1)
    names = list(checks)
    rows = range(len(names))
    for shift, color, label in ((-0.26, READ, "value model"), (0.0, JUDGED, "ridge on words"), (0.26, QUIET, "commonest value")):
        found = [{"value model": c.model, "ridge on words": c.ridge, "commonest value": c.majority}[label] for c in checks.values()]
        axis.barh([r + shift for r in rows], [f.mae if f else 0.0 for f in found], height=0.24, color=color, label=label)
    axis.set(yticks=list(rows), yticklabels=names, xlabel="mean absolute error (steps of the scale; shorter is better)")
    axis.invert_yaxis()
    figure.legend(fontsize=8, frameon=False, loc="outside upper center", ncols=3)
    return _svg(figure)


def loss_plot(curves: Mapping[str, Sequence[float]]) -> str:
    """Training loss by step, one plot a training."""
    figure, axes = _grid(len(curves), height=2.6)
    for axis, (name, losses) in zip(axes, curves.items(), strict=False):
        axis.plot(range(1, len(losses) + 1), losses, color=READ, linewidth=1)
        axis.set(title=name, xlabel="step", ylabel="loss")
    return _svg(figure)


def _grid(count: int, *, height: float, columns: int = COLUMNS) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    wide = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.2 * wide if columns > 1 else 8.0, height * rows), layout="constrained")
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
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL)
