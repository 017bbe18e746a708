"""Puts the page together."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from nemo_steerlm.core.files import atomic_write
from nemo_steerlm.evaluation.control import Control, Joint
from nemo_steerlm.evaluation.pairs import PairFigures
from nemo_steerlm.evaluation.report import plots
from nemo_steerlm.evaluation.samples import Sample
from nemo_steerlm.evaluation.showcase import answer_pairs
from nemo_steerlm.evaluation.summary import ModelRow, behind, interval, verdict
from nemo_steerlm.evaluation.value_model import AttributeCheck


class StageRow(msgspec.Struct, frozen=True, kw_only=True):
    """One stage in the report's table of stages."""

    name: str
    seconds: float
    records: int | None
    digest: str


class SourceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One source of data, as the stage ``prepare`` counted it."""

    conversations: dict[str, int]
    """By split."""
    rated: dict[str, int]
    """By attribute, how many turns that teach the value model have it."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the page shows."""

    name: str
    checks: dict[str, AttributeCheck]
    control: list[Control]
    samples: list[Sample]
    """Of the model that ``control`` is about."""
    losses: dict[str, list[float]]
    """Training stage to its loss by step."""
    stages: list[StageRow]
    versions: dict[str, str]
    manifest: str
    """The pipeline file, as text."""
    summary: str = ""
    rows: list[ModelRow] = []
    """Other models and baselines."""
    joint: list[Joint] = []
    pairs: PairFigures | None = None
    sources: dict[str, SourceRow] = {}
    """Where the data comes from, by name."""


def write_page(path: Path, report: Report) -> None:
    """Write the page, whole or not at all."""
    import jinja2

    source = importlib.resources.files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(source).render(
        report=report,
        read_plot=plots.read_plot(report.control),
        judged_plot=plots.judged_plot(report.control),
        cross_talk_plot=plots.cross_talk_plot(report.control),
        reliability_plot=plots.reliability_plot(report.checks),
        agreement_plot=plots.agreement_plot(report.checks) if report.checks else None,
        loss_plot=plots.loss_plot(report.losses) if report.losses else None,
        answers=answers_by_level(report.samples),
        pairs=answer_pairs(report.samples, len(report.control)),
        number=lambda value, digits=2: "–" if value is None else f"{value:.{digits}f}",
        interval=interval,
        verdict=verdict(report.control),
        behind=behind(report.control, [row for row in report.rows if row.baseline]),
    )
    with atomic_write(path) as file:
        file.write(page)


def answers_by_level(samples: Sequence[Sample], prompts: int = 2) -> Mapping[str, list[dict[str, Any]]]:
    """For each attribute, up to ``prompts`` prompts with one answer a level: the same question asked every way."""
    shown: dict[str, list[dict[str, Any]]] = {}
    for attribute in dict.fromkeys(s.attribute for s in samples if not s.joint):
        mine = [s for s in samples if s.attribute == attribute]
        levels = sorted({s.level for s in mine})
        for prompt in dict.fromkeys(s.prompt for s in mine):
            row = [next((s for s in mine if s.prompt == prompt and s.level == level), None) for level in levels]
            if all(row) and len(shown.setdefault(attribute, [])) < prompts:
                shown[attribute].append({"prompt": prompt, "answers": row})
    return shown
