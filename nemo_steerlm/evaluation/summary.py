"""What ``steerlm run`` prints at the end: enough to tell a model that steers from one that does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from nemo_steerlm.evaluation.agreement import Figures
from nemo_steerlm.evaluation.control import Control, Joint, Neighbours
from nemo_steerlm.evaluation.intervals import Interval
from nemo_steerlm.evaluation.pairs import PairFigures
from nemo_steerlm.evaluation.value_model import AttributeCheck

TALKS_ACROSS = 0.15
"""Cross-talk, in steps read for each step asked of another attribute, that is worth a sentence."""


class ModelRow(msgspec.Struct, frozen=True, kw_only=True):
    """One model of the chain, or a baseline, beside the model that the report is about."""

    name: str
    table: list[Control]
    baseline: bool = False
    gain: dict[str, Interval] = {}
    """By attribute, control error less that of the model before it in the chain, paired; below 0 is better."""


def summary(
    checks: Mapping[str, AttributeCheck],
    table: Sequence[Control],
    *,
    rows: Sequence[ModelRow] = (),
    joint: Sequence[Joint] = (),
    best: str = "",
    pairs: PairFigures | None = None,
) -> str:
    """``table`` is the model that is served; ``rows`` are the chain's models and baselines; ``best`` says which is served, and why."""
    lines = [*_verdict(table), ""]
    for entry in table:
        lines += [*_attribute(entry, [row for row in rows if row.baseline]), ""]
    lines += [f"Joint requests taught {j.taught:18} {j.count:5} answers, control error {interval(j.error)} steps" for j in joint]
    if joint:
        lines.append("")
    lines += _chain([row for row in rows if not row.baseline], best)
    lines.append("Value model against held-out human labels (accuracy / mean absolute error / Spearman)")
    if checks:
        heads = "".join(f"{head:23}" for head in ("likeliest value", "expected value", "ridge on words", "commonest value"))
        lines.append(f"  {'attribute':18} {'turns':>6}   {heads} ECE")
    for name, c in checks.items():
        figures = "".join(f"{_short(f):23}" for f in (c.model, c.expected, c.ridge, c.majority))
        lines.append(f"  {name:18} {c.model.count:6}   {figures}" + (f" {c.calibration.ece:.2f}" if c.calibration else " -"))
    if pairs:
        lines.append(f"Preferred answers read higher in {interval(pairs.accuracy)} of {pairs.count} pairs ({_weighed(pairs.weights)})")
    return "\n".join(lines) + "\n"


def _weighed(weights: Mapping[str, float]) -> str:
    return " ".join(f"{weight:+g} {name}" for name, weight in weights.items())


def _verdict(table: Sequence[Control]) -> list[str]:
    """The one sentence that cannot be right by luck."""
    good = [entry.attribute for entry in table if not entry.alike]
    bad = [entry.attribute for entry in table if entry.alike]
    lines = []
    if good:
        lines.append(f"It steers {_list(good)}: every two neighbouring levels are told apart.")
    if bad:
        lines.append(f"It does not steer {_list(bad)} at every level:")
        lines += [f"  {sentence}" for entry in table for sentence in sentences(entry)]
    return lines


def sentences(entry: Control) -> list[str]:
    """A plain sentence for each pair of neighbouring levels that is not told apart."""
    return [
        f"{entry.attribute} {pair.lower} and {pair.upper} {'read the wrong way round' if pair.reversed else 'read the same'} "
        f"({_witness(pair, entry.judge)})."
        for pair in entry.alike
    ]


def _witness(pair: Neighbours, judge: str | None) -> str:
    sides = [("the value model", pair.read)] + ([(judge or "the judge", pair.judged)] if pair.judged else [])
    who, auc = min(sides, key=lambda side: 1.0 if side[1].value is None else side[1].value)
    return f"AUC {interval(auc)} by {who}"


def _attribute(entry: Control, baselines: Sequence[ModelRow]) -> list[str]:
    levels = entry.levels
    lines = [f"{entry.attribute} ({levels[0].count} answers a level)"]
    judged = f", by {entry.judge} {interval(entry.rank_judged)}" if entry.rank_judged else ""
    lines.append(f"  per-answer correlation  {interval(entry.rank_read)}{judged}")
    lines.append(f"  control error           {interval(entry.error)} steps, hit rate {entry.hit_rate:.2f}, slope {number(entry.slope)}")
    worst = entry.worst_neighbours
    lines.append(f"  worst neighbours        {worst.lower} and {worst.upper}: {_witness(worst, entry.judge)}")
    if entry.cross_talk:
        other = max(entry.cross_talk, key=lambda name: abs(entry.cross_talk[name]))
        steps = entry.cross_talk[other]
        warning = "  (more than a side effect)" if abs(steps) > TALKS_ACROSS else ""
        lines.append(f"  worst cross-talk        {other} {steps:+.2f} steps for each step asked{warning}")
    for row in baselines:
        lines += [_baseline(row.name, other, entry.judge) for other in row.table if other.attribute == entry.attribute]
    lines.append("  asked               " + "".join(f"{level.level:9}" for level in levels) + "   Spearman of means")
    lines.append("  value model reads   " + "".join(f"{level.read:9.2f}" for level in levels) + f"   {number(entry.spearman_read)}")
    if entry.judge:
        lines.append(
            f"  by {entry.judge[:17]:17}"
            + "".join(f"{number(level.judged):>9}" for level in levels)
            + f"   {number(entry.spearman_judged)}"
        )
        if any(level.taught is not None for level in levels):
            lines.append("  of texts taught     " + "".join(f"{number(level.taught):>9}" for level in levels))
    lines.append("  distinct-2          " + "".join(f"{number(level.fluency.distinct_2):>9}" for level in levels))
    if any(level.fluency.perplexity is not None for level in levels):
        lines.append("  base perplexity     " + "".join(f"{_short_number(level.fluency.perplexity):>9}" for level in levels))
    if any(level.fluency.cut for level in levels):
        lines.append("  share cut           " + "".join(f"{level.fluency.cut:9.2f}" for level in levels))
    return lines


def _baseline(name: str, entry: Control, judge: str | None) -> str:
    judged = f", by {judge} {interval(entry.rank_judged)}" if entry.rank_judged else ""
    return f"  {name + ' baseline':23} correlation {interval(entry.rank_read)}{judged}; control error {interval(entry.error)} steps"


def _chain(rows: Sequence[ModelRow], best: str) -> list[str]:
    if len(rows) < 2:
        return []
    lines = ["Models of this pipeline: control error in steps, and its change from the model before (paired; below 0 is better)"]
    for row in rows:
        parts = [
            f"{c.attribute} {interval(c.error)}" + (f" ({interval(row.gain[c.attribute], sign=True)})" if c.attribute in row.gain else "")
            for c in row.table
        ]
        helped = {name: change.high is not None and change.high < 0 for name, change in row.gain.items()}
        verdict = (
            ""
            if not helped
            else "  helped"
            if all(helped.values())
            else "  did not help"
            if not any(helped.values())
            else "  helped in part"
        )
        lines.append(f"  {row.name:18} {'; '.join(parts)}{verdict}")
    return [*lines, *([best] if best else []), ""]


def interval(estimate: Interval | None, *, sign: bool = False) -> str:
    """``0.54 [0.46, 0.61]``."""
    if estimate is None or estimate.value is None:
        return "-"
    form = "+.2f" if sign else ".2f"
    ends = "" if estimate.low is None or estimate.high is None else f" [{estimate.low:{form}}, {estimate.high:{form}}]"
    return f"{estimate.value:{form}}{ends}"


def number(value: float | None) -> str:
    """Two decimals, or a dash."""
    return "-" if value is None else f"{value:.2f}"


def _short_number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _short(figures: Figures | None) -> str:
    return "-" if figures is None else f"{figures.accuracy:.2f} / {figures.mae:.2f} / {number(figures.spearman)}"
