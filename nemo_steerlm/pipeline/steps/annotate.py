"""The annotate stage: the value model labels the conversations that the SteerLM model will train on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from nemo_steerlm.annotation import shards
from nemo_steerlm.annotation.annotate import Options
from nemo_steerlm.annotation.annotate import annotate as label
from nemo_steerlm.annotation.results import Summary
from nemo_steerlm.client.bulk import IN_FLIGHT
from nemo_steerlm.core.errors import DataError, Where
from nemo_steerlm.core.files import atomic_write
from nemo_steerlm.data.cleaning import CleaningRules, clean
from nemo_steerlm.data.records import read_lines
from nemo_steerlm.data.shard import Shard
from nemo_steerlm.data.splits import SPLITS
from nemo_steerlm.evaluation.agreement import agreement_of
from nemo_steerlm.pipeline.run_context import Run
from nemo_steerlm.pipeline.steps.prepare import tokenizer_choice

FIGURES = ("model", "total", "labelled", "turns")
"""Of a run's summary, what follows from its inputs alone: the file has a digest that later stages hash."""


def annotate(run: Run) -> dict[str, Any] | None:
    """Write ``train.jsonl``, ``val.jsonl`` and ``summary.json``. A shard writes its part only and returns None; merging ends the stage."""
    return label_and_clean(run, {split: run.input("prepare", f"annotate_{split}.jsonl") for split in SPLITS})


def label_and_clean(run: Run, files: Mapping[str, Path]) -> dict[str, Any] | None:
    """Label each file into the stage's folder and keep what still fits the length with its new labels. Returns the metrics."""
    totals = {name: sum(1 for _ in read_lines(path)) for name, path in files.items()}
    summaries: dict[str, Summary] = {}
    before = 0
    for name, path in files.items():
        labelled = run.folder / f"labelled_{name}.jsonl"
        if run.merge:
            summaries[name] = shards.merge(path, labelled, run.pipeline.spec.annotate.shards)
        else:
            summaries[name] = _label(run, path, labelled, before, sum(totals.values()))
        _require_complete(summaries[name])
        before += totals[name]
    if run.shard is not None:
        return None
    figures = {name: _figures(run, name, summary) for name, summary in summaries.items()}
    metrics = {name: _finish(run, name) for name in files}
    with atomic_write(run.folder / "summary.json") as file:
        file.write(msgspec.json.format(msgspec.json.encode(figures), indent=2).decode() + "\n")
    return metrics


def _label(run: Run, source: Path, target: Path, before: int, total: int) -> Summary:
    options = Options(
        turns=run.pipeline.spec.annotate.turns,
        max_in_flight=IN_FLIGHT,
        shard=run.shard or Shard(),
        # The stage's own marker says whether what is here belongs to the same inputs.
        restart=False,
    )
    return label(source, target, run.servers["value"], options, progress=lambda done, _: run.progress(before + done, total))


def _figures(run: Run, name: str, summary: Summary) -> dict[str, Any]:
    labelled = run.folder / f"labelled_{name}.jsonl"
    agreement = agreement_of(labelled, run.pipeline.spec.attributes.schema_()) if summary.labelled else {}
    return {**{key: getattr(summary, key) for key in FIGURES}, "agreement": agreement}


def _require_complete(summary: Summary) -> None:
    if not summary.complete:
        most, count = max(summary.reasons.items(), key=lambda item: item[1])
        reasons = f"{most} ({count}{' and others' if len(summary.reasons) > 1 else ''})"
        raise DataError(
            f"{summary.failed} of {summary.total} records could not be labelled: {reasons}",
            where=Where(file=summary.rejects),
            instead="see that file; running the stage again tries only them",
        )


def _finish(run: Run, name: str) -> dict[str, Any]:
    """Keep the labelled records that still fit, without the labels that no model predicted. Returns the metrics."""
    spec = run.pipeline.spec
    rules = CleaningRules(
        spec.model.max_sequence_length, spec.model.chat_tokens.tokens(), spec.model.layout, spec.attributes.schema_(), hide_human="all"
    )
    labelled = run.folder / f"labelled_{name}.jsonl"
    cleaned = clean(labelled, run.folder / f"{name}.jsonl", tokenizer_choice(run.input("prepare", "tokenizer")), rules)
    labelled.unlink()
    return {"records": cleaned.kept, "removed": cleaned.removed}
