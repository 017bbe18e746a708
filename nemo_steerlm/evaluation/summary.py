"""What ``steerlm run`` prints at the end: enough to tell a model that steers from one that does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from nemo_steerlm.evaluation.agreement import Figures
from nemo_steerlm.evaluation.control import Control, Joint, Neighbours
from nemo_steerlm.evaluation.intervals import Interval
from nemo_steerlm.evaluation.pairs import PairFigures
from nemo_steerlm.evaluation.value_model import AttributeCheck

TALKS_ACROSS = 0.15
"""Cross-talk, in steps read for each step asked of another attribute, that is worth a sentence."""
FOLLOWS = 0.5
"""Answers whose reading correlates less with what was asked of them do not follow it: choosing among them is what does."""


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
    baselines = [row for row in rows if row.baseline]
    lines = [*verdict(table), *behind(table, baselines), ""]
    for entry in table:
        lines += [*_attribute(entry, baselines), ""]
    for j in joint:
        single = f", of single answers {interval(j.single)}" if j.single else ""
        lines.append(f"Joint requests taught {j.taught:18} {j.count:5} answers, control error {interval(j.error)} steps{single}")
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


def verdict(table: Sequence[Control]) -> list[str]:
    """The sentences that cannot be right by luck, nor by choosing; those that name levels are indented."""
    good = [entry for entry in table if not entry.alike and not entry.unaided.alike]
    helped = [entry for entry in table if not entry.alike and entry.unaided.alike]
    bad = [entry for entry in table if entry.alike]
    lines = []
    if good:
        lines.append(f"It steers {_names(good)}: every two neighbouring levels are told apart.")
    if helped:
        lines.append(f"It steers {_names(helped)} only where the value model chooses the best of {helped[0].best_of} answers.")
    if bad:
        lines.append(f"It does not steer {_names(bad)} at every level:")
        lines += [f"  {sentence}" for entry in table for sentence in sentences(entry)]
    return lines + [f"  {sentence}" for entry in table for sentence in _single_answers(entry)]


def _single_answers(entry: Control) -> list[str]:
    """What the choice hides: that answers which nobody chose do not follow their label, or which levels they do not tell apart."""
    if entry.single is None:
        return []
    alone, said = entry.single, f"Single answers do not follow {entry.attribute}: they correlate with what was asked at"
    if (alone.rank_read.value or 0.0) < FOLLOWS:
        return [f"{said} {_ranks(alone)}, the best of {entry.best_of} at {_ranks(entry)}."]
    known = {(pair.lower, pair.upper) for pair in entry.alike}
    more = msgspec.structs.replace(alone, neighbours=[pair for pair in alone.neighbours if (pair.lower, pair.upper) not in known])
    return [f"In single answers {sentence}" for sentence in sentences(more)]


def behind(table: Sequence[Control], baselines: Sequence[ModelRow]) -> list[str]:
    """A sentence for each baseline that follows an attribute no worse than the model, both answering once."""
    found = []
    for entry in table:
        for row in baselines:
            for other in row.table:
                mine, theirs = entry.unaided.rank_read, other.unaided.rank_read
                if other.attribute == entry.attribute and (theirs.value or 0.0) >= (mine.value or 0.0):
                    figures = f"correlation {interval(theirs)} against {interval(mine)}, single answers"
                    found.append(f"The {row.name} baseline follows {entry.attribute} no worse: {figures}.")
    return found


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
    chosen = f", each the best of {entry.best_of}; under it the first of them" if entry.single else ""
    lines = [f"{entry.attribute} ({levels[0].count} answers a level{chosen})"]
    lines += _beside("per-answer correlation", entry, _ranks)
    lines += _beside("control error", entry, _error)
    lines += _beside("worst neighbours", entry, _worst)
    if entry.cross_talk:
        talked = max(entry.cross_talk, key=lambda name: abs(entry.cross_talk[name]))
        steps = entry.cross_talk[talked]
        warning = "  (more than a side effect)" if abs(steps) > TALKS_ACROSS else ""
        lines.append(f"  worst cross-talk        {talked} {steps:+.2f} steps for each step asked{warning}")
    for row in baselines:
        mine = [other for other in row.table if other.attribute == entry.attribute]
        for other in mine:
            label = f"{row.name} baseline" if entry.single is None else f"{row.name}, best of {other.best_of}"
            lines += [f"  {label:23} {_figures(other)}"] if other.single or entry.single is None else []
            lines += [f"  {f'{row.name}, single answers':23} {_figures(other.unaided)}"] if entry.single else []
    lines.append("  asked               " + "".join(f"{level.level:9}" for level in levels) + "   Spearman of means")
    lines += _beside("value model reads", entry, _read, wide=20)
    if entry.judge:
        lines += _beside(f"by {entry.judge[:17]}", entry, _judged, wide=20)
        if any(level.taught is not None for level in levels):
            lines.append("  of texts taught     " + "".join(f"{number(level.taught):>9}" for level in levels))
    lines.append("  distinct-2          " + "".join(f"{number(level.fluency.distinct_2):>9}" for level in levels))
    if any(level.fluency.perplexity is not None for level in levels):
        lines.append("  base perplexity     " + "".join(f"{_short_number(level.fluency.perplexity):>9}" for level in levels))
    if any(level.fluency.cut for level in levels):
        lines.append("  share cut           " + "".join(f"{level.fluency.cut:9.2f}" for level in levels))
    return lines


def _beside(label: str, entry: Control, figures: Callable[[Control], str], wide: int = 24) -> list[str]:
    """A line of figures, and under it the same of answers that nobody chose, where there was a choice."""
    lines = [f"  {label:{wide}}{figures(entry)}"]
    return lines if entry.single is None else [*lines, f"    {'single answers':{wide - 2}}{figures(entry.single)}"]


def _ranks(entry: Control) -> str:
    return interval(entry.rank_read) + (f", by {entry.judge} {interval(entry.rank_judged)}" if entry.rank_judged else "")


def _error(entry: Control) -> str:
    return f"{interval(entry.error)} steps, hit rate {entry.hit_rate:.2f}, slope {number(entry.slope)}"


def _worst(entry: Control) -> str:
    worst = entry.worst_neighbours
    return f"{worst.lower} and {worst.upper}: {_witness(worst, entry.judge)}"


def _read(entry: Control) -> str:
    return "".join(f"{level.read:9.2f}" for level in entry.levels) + f"   {number(entry.spearman_read)}"


def _judged(entry: Control) -> str:
    return "".join(f"{number(level.judged):>9}" for level in entry.levels) + f"   {number(entry.spearman_judged)}"


def _figures(entry: Control) -> str:
    return f"correlation {_ranks(entry)}; control error {interval(entry.error)} steps"


def _chain(rows: Sequence[ModelRow], best: str) -> list[str]:
    if len(rows) < 2:
        return []
    lines = ["Models of this pipeline: control error in steps, and its change from the model before (paired; below 0 is better)"]
    for row in rows:
        parts = [
            f"{c.attribute} {interval(c.error)}"
            + (f" ({interval(row.gain[c.attribute], sign=True)})" if c.attribute in row.gain else "")
            + (f", single answers {interval(c.single.error)}" if c.single else "")
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


def _names(entries: Sequence[Control]) -> str:
    names = [entry.attribute for entry in entries]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _short(figures: Figures | None) -> str:
    return "-" if figures is None else f"{figures.accuracy:.2f} / {figures.mae:.2f} / {number(figures.spearman)}"
