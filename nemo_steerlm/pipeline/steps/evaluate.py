"""The evaluate stage: the value model against people, the SteerLM model against what was asked, and the report of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from nemo_steerlm.client.bulk import read_turns
from nemo_steerlm.core.attributes import AttributeSchema
from nemo_steerlm.core.files import atomic_write
from nemo_steerlm.data.records import read_conversations, write_records
from nemo_steerlm.data.splits import SPLITS
from nemo_steerlm.evaluation.control import Control, Joint, control, difference, joint
from nemo_steerlm.evaluation.judges import judge
from nemo_steerlm.evaluation.rated_turns import rated_turns
from nemo_steerlm.evaluation.report.page import Report, SourceRow, StageRow, write_page
from nemo_steerlm.evaluation.samples import Sample, spread
from nemo_steerlm.evaluation.summary import ModelRow, summary
from nemo_steerlm.evaluation.value_model import AttributeCheck, check_value_model
from nemo_steerlm.pipeline.registry import PREPARE
from nemo_steerlm.pipeline.run_context import Run, versions
from nemo_steerlm.pipeline.stages import stages
from nemo_steerlm.pipeline.stages.sample import EVALUATION
from nemo_steerlm.pipeline.steps.baselines import baselines, with_likelihood
from nemo_steerlm.pipeline.steps.control_samples import Evaluated, Request, evaluate_model, planned
from nemo_steerlm.pipeline.steps.preference_pairs import evaluate_pairs
from nemo_steerlm.pipeline.steps.train import losses

TAUGHT_TEXTS = 400
"""Training texts of a level that the judge looks at."""


class Taught(msgspec.Struct, frozen=True, kw_only=True):
    """What the SteerLM model learned from."""

    texts: list[tuple[str, dict[str, int]]]
    """Answers and the values they are labelled with."""
    combinations: Counter[str]
    """How often each combination of values was taught, as label strings without language."""


def evaluate(run: Run) -> dict[str, Any]:
    """Write ``metrics.json``, ``samples.jsonl``, ``report.html``, ``summary.txt``, and which model of the chain is the best."""
    spec = run.pipeline.spec
    schema = spec.attributes.schema_()
    checks = _value_model(run, schema)
    plan = planned(run)
    last = evaluate_model(run, plan)
    taught = _taught(run, schema)
    curves = _curves(taught, spec.evaluate.judges)
    chain, beside = _with_baselines(run, plan, [*_earlier(run, last), last])
    rows = _rows(chain, spec.evaluate.judges, curves)
    best = min(rows, key=lambda row: float(np.mean([entry.error.value or 0.0 for entry in row.table])))
    chosen = chain[rows.index(best)]
    table = control(chosen.samples, spec.evaluate.judges, curves, {text for text, _ in taught.texts})
    together = _joint(chosen.samples, taught, schema)
    sentence = f"{best.name} has the smallest control error on held-out prompts: it is what steerlm serve takes." if len(chain) > 1 else ""
    rows += [ModelRow(name=name, table=control(made, spec.evaluate.judges, curves), baseline=True) for name, made in beside.items()]
    pairs = evaluate_pairs(run, spec.evaluate.pairs) if spec.evaluate.pairs else None
    text = summary(checks, table, rows=rows, joint=together, best=sentence, pairs=pairs)
    written = [*(model.samples for model in chain), *beside.values()]
    write_records(run.folder / "samples.jsonl", (msgspec.to_builtins(s) for samples in written for s in samples))
    figures = {"valueModel": checks, "control": table, "models": rows, "joint": together, "best": best.name, "pairs": pairs}
    _write_json(run, "metrics.json", figures)
    run.work.link_best(best.name)
    with atomic_write(run.folder / "summary.txt") as file:
        file.write(text)
    shown = [row for row in rows if row.baseline or len(chain) > 1]
    report = _report(run, checks, chosen.samples, table, shown, together)
    write_page(run.folder / "report.html", msgspec.structs.replace(report, pairs=pairs))
    # First, where no limit on what a cluster keeps cuts it off: by its being there the operator knows that there is a best model to serve.
    return {"best": best.name, **{entry.attribute: _told(entry) for entry in table}}


def _told(entry: Control) -> dict[str, float | None]:
    found = {"controlError": entry.error.value, "correlation": entry.rank_read.value}
    return {**found, "singleAnswersCorrelation": entry.single.rank_read.value} if entry.single else found


def _with_baselines(run: Run, plan: Sequence[Request], chain: Sequence[Evaluated]) -> tuple[list[Evaluated], dict[str, list[Sample]]]:
    """The chain, its answers with their likelihoods where wanted, and what the baselines answer."""
    how = run.pipeline.spec.evaluate
    if not (how.baselines or how.perplexity):
        return list(chain), {}
    found = baselines(run, plan, [sample.answer for model in chain for sample in model.samples])
    if not found.likelihoods:
        return list(chain), found.samples
    likelihoods = iter(found.likelihoods)
    measured = [
        msgspec.structs.replace(model, samples=[with_likelihood(sample, next(likelihoods)) for sample in model.samples]) for model in chain
    ]
    return measured, found.samples


def _write_json(run: Run, name: str, content: Any) -> None:
    with atomic_write(run.folder / name) as file:
        file.write(msgspec.json.format(msgspec.json.encode(content), indent=2).decode() + "\n")


def _value_model(run: Run, schema: AttributeSchema) -> dict[str, AttributeCheck]:
    """Predictions beside human labels, on turns the value model never trained on; its probabilities on a sample of them."""
    labelled = [run.input("annotate", f"{split}.jsonl") for split in SPLITS]
    turns = rated_turns(run.input("prepare", "value_train.jsonl"), labelled, schema)
    how = run.pipeline.spec.evaluate
    looked_at = spread(turns.held_out, min(how.calibration_turns, len(turns.held_out)), how.seed)
    asked = [turns.conversations[i] for i in looked_at]
    read = read_turns(run.servers["value"], asked, lambda n: run.progress(n, len(asked), phase="calibration")) if asked else []
    chances = {i: found.probabilities for i, found in zip(looked_at, read, strict=True)}
    return check_value_model(turns.taught, turns.held_out, turns.predicted, schema, chances)


def _taught(run: Run, schema: AttributeSchema) -> Taught:
    texts = [
        (turn.text, schema.parse(turn.label).values)
        for conversation in read_conversations(run.input("annotate", "train.jsonl"))
        for turn in conversation.turns[1:]
        if turn.label is not None and turn.speaker != conversation.mask
    ]
    return Taught(texts=texts, combinations=Counter(schema.encode(values) for _, values in texts))


def _curves(taught: Taught, judges: Mapping[str, str]) -> dict[str, dict[int, float]]:
    """What each judge says of training texts, by attribute and level: what the model was taught, and the most it can reach."""
    curves: dict[str, dict[int, float]] = {}
    for name, kind in judges.items():
        said = judge(kind)
        levels = sorted({values[name] for _, values in taught.texts if name in values})
        for level in levels:
            mine = [text for text, values in taught.texts if values.get(name) == level]
            curves.setdefault(name, {})[level] = float(np.mean([said(mine[i]) for i in spread(mine, min(len(mine), TAUGHT_TEXTS), 0)]))
    return curves


def _earlier(run: Run, last: Evaluated) -> Iterator[Evaluated]:
    """The models before the last, as they answered while their round sampled; those that were asked something else are left out."""
    for stage in stages(run.pipeline):
        if stage.kind == "sample":
            found = Evaluated.load(run.input(stage.name, EVALUATION))
            if found.comparable(last):
                yield found


def _rows(chain: Sequence[Evaluated], judges: Mapping[str, str], curves: Mapping[str, Mapping[int, float]]) -> list[ModelRow]:
    rows: list[ModelRow] = []
    for i, model in enumerate(chain):
        table = control(model.samples, judges, curves)
        gain = {entry.attribute: difference(chain[i - 1].samples, model.samples, entry.attribute) for entry in table} if i else {}
        rows.append(ModelRow(name=model.model, table=table, gain=gain))
    return rows


def _joint(samples: Sequence[Sample], taught: Taught, schema: AttributeSchema) -> list[Joint]:
    together = [s for s in samples if s.joint]
    return joint(together, taught.combinations, {i: schema.encode(s.asked) for i, s in enumerate(together)})


def _report(
    run: Run,
    checks: dict[str, AttributeCheck],
    samples: Sequence[Sample],
    table: Sequence[Control],
    models: Sequence[ModelRow],
    together: Sequence[Joint],
) -> Report:
    rows, curves = [], {}
    for stage in stages(run.pipeline):
        success = run.work.success(stage.name)
        if success is None:
            continue
        first = success.outputs[stage.outputs[0]]
        records = sum(output.records or 0 for output in success.outputs.values()) or None
        rows.append(StageRow(name=stage.name, seconds=success.seconds, records=records, digest=first.digest))
        if stage.training:
            curves[stage.name] = losses(run.input(stage.name, "metrics.json"))
    return Report(
        name=run.pipeline.metadata.name,
        checks=checks,
        control=list(table),
        samples=list(samples),
        losses=curves,
        stages=rows,
        versions=versions(),
        manifest=run.manifest_text,
        rows=list(models),
        joint=list(together),
        sources=_sources(run),
    )


def _sources(run: Run) -> dict[str, SourceRow]:
    """What ``prepare`` counted; a version before it counted sources left nothing."""
    success = run.work.success(PREPARE)
    return msgspec.convert((success.metrics if success else {}).get("sources", {}), dict[str, SourceRow])
