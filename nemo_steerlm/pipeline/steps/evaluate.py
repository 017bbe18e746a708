"""The evaluate stage: the value model against people, the SteerLM model against what was asked, and the report of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from nemo_steerlm.client.bulk import AnswerRequest, GenerationOptions, expected_values, generate_answers
from nemo_steerlm.core.attributes import AttributeSchema
from nemo_steerlm.core.conversation import ASSISTANT, Conversation, Turn
from nemo_steerlm.core.errors import DataError
from nemo_steerlm.core.files import atomic_write
from nemo_steerlm.core.labels import Label
from nemo_steerlm.core.template import Template
from nemo_steerlm.core.tokenization import encode_spans, load_tokenizer
from nemo_steerlm.data.records import read_conversations, write_records
from nemo_steerlm.data.splits import SPLITS
from nemo_steerlm.evaluation.control import control
from nemo_steerlm.evaluation.judges import judge
from nemo_steerlm.evaluation.rated_turns import rated_turns
from nemo_steerlm.evaluation.report.page import Report, StageRow, write_page
from nemo_steerlm.evaluation.samples import Sample, spread
from nemo_steerlm.evaluation.summary import summary
from nemo_steerlm.evaluation.value_model import AttributeCheck, check_value_model
from nemo_steerlm.pipeline.manifest import PipelineSpec
from nemo_steerlm.pipeline.run_context import Run, versions
from nemo_steerlm.pipeline.stages import stages
from nemo_steerlm.pipeline.steps.train import losses


def evaluate(run: Run) -> dict[str, Any]:
    """Write ``metrics.json``, ``samples.jsonl``, ``report.html`` and ``summary.txt``."""
    spec = run.pipeline.spec
    schema = spec.attributes.schema_()
    checks = _value_model(run, schema)
    samples = _steered(run, spec, schema)
    table = control(samples, spec.evaluate.judges)
    write_records(run.folder / "samples.jsonl", map(msgspec.to_builtins, samples))
    metrics: dict[str, Any] = msgspec.to_builtins({"valueModel": checks, "control": table})
    with atomic_write(run.folder / "metrics.json") as file:
        file.write(msgspec.json.format(msgspec.json.encode(metrics), indent=2).decode() + "\n")
    with atomic_write(run.folder / "summary.txt") as file:
        file.write(summary(checks, table))
    write_page(run.folder / "report.html", _report(run, checks, samples, table))
    return {entry.attribute: {"controlError": entry.error.value, "correlation": entry.rank_read.value} for entry in table}


def _value_model(run: Run, schema: AttributeSchema) -> dict[str, AttributeCheck]:
    """Predictions beside human labels, on turns the value model never trained on."""
    labelled = [run.input("annotate", f"{split}.jsonl") for split in SPLITS]
    turns = rated_turns(run.input("prepare", "value_train.jsonl"), labelled, schema)
    return check_value_model(turns.taught, turns.held_out, turns.predicted, schema)


def question(conversation: Conversation) -> Conversation | None:
    """The conversation up to its first answer, unlabelled; None where it has none."""
    for i, turn in enumerate(conversation.turns):
        if turn.speaker != conversation.mask and i > 0:
            asked = tuple(Turn(speaker=t.speaker, text=t.text) for t in conversation.turns[:i])
            return Conversation(turns=asked, system=conversation.system, mask=conversation.mask)
    return None


def _questions(run: Run, spec: PipelineSpec, schema: AttributeSchema) -> list[Conversation]:
    """The manifest's prompts, or those of the validation records that leave room for an answer, each once."""
    validation = list(read_conversations(run.input("prepare", "annotate_val.jsonl")))
    if spec.evaluate.prompts:
        turns = [(Turn(speaker=validation[0].mask, text=text),) for text in spec.evaluate.prompts]
        return [Conversation(turns=t, system=validation[0].system, mask=validation[0].mask) for t in turns]
    tokenizer = load_tokenizer(run.input("prepare", "tokenizer"))
    template = Template.of(tokenizer, spec.model.chat_tokens.tokens(), spec.model.layout)
    label = schema.encode(schema.defaults())
    room = spec.model.max_sequence_length - spec.evaluate.max_tokens
    found = dict.fromkeys(q for c in validation if (q := question(c)) is not None)
    fitting = [q for q in found if len(encode_spans(template.reply_prompt(q, ASSISTANT, label), tokenizer).ids) <= room]
    if not fitting:
        raise DataError(
            f"no validation prompt leaves room for {spec.evaluate.max_tokens} tokens within {spec.model.max_sequence_length}",
            instead="lower evaluate.maxTokens, raise model.maxSequenceLength, or give evaluate.prompts",
        )
    return fitting


def _steered(run: Run, spec: PipelineSpec, schema: AttributeSchema) -> list[Sample]:
    """Answers at every level of every steered attribute, read and judged."""
    how = spec.evaluate
    questions = _questions(run, spec, schema)
    chosen = [questions[i] for i in spread(questions, how.samples_per_level, how.seed)]
    plan = [(name, level, q) for name in how.attributes or schema.names for level in schema[name].values for q in chosen]
    requests = [
        AnswerRequest(conversation=q, label=Label(values={name: level}).over(_base(schema, how.base)), seed=how.seed + i)
        for i, (name, level, q) in enumerate(plan)
    ]
    total = 2 * len(requests)
    options = GenerationOptions(max_tokens=how.max_tokens, temperature=how.temperature, top_k=how.top_k)
    texts = generate_answers(run.servers["steer"], requests, options, lambda n: run.progress(n, total, phase="answering"))
    answered = [_answered(q, text) for (_, _, q), text in zip(plan, texts, strict=True)]
    read = expected_values(run.servers["value"], answered, lambda n: run.progress(len(requests) + n, total, phase="reading"))
    judges = {name: judge(kind) for name, kind in how.judges.items()}
    return [
        Sample(
            attribute=name,
            level=level,
            prompt=q.turns[-1].text,
            answer=text,
            read=values,
            judged=judges[name](text) if name in judges else None,
        )
        for (name, level, q), text, values in zip(plan, texts, read, strict=True)
    ]


def _base(schema: AttributeSchema, values: Mapping[str, int]) -> Label:
    """What is asked for besides the steered attribute; training labels end in a language where the schema has languages."""
    return Label(values={**schema.defaults(), **values}, language=schema.default_language)


def _answered(asked: Conversation, text: str) -> Conversation:
    answer = Turn(speaker=ASSISTANT, text=text)
    return Conversation(turns=(*asked.turns, answer), system=asked.system, mask=asked.mask)


def _report(run: Run, checks: dict[str, AttributeCheck], samples: Sequence[Sample], table: Sequence[Any]) -> Report:
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
    )
