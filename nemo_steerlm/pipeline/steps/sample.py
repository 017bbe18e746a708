"""A bootstrap round's sampling (paper section 3.4, step 4a): answers under good labels, read again by the value model."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from nemo_steerlm.client.bulk import Answer, AnswerRequest, GenerationOptions, generate_answers
from nemo_steerlm.core.attributes import AttributeSchema
from nemo_steerlm.core.conversation import ASSISTANT, Conversation
from nemo_steerlm.core.errors import DataError
from nemo_steerlm.core.labels import Label
from nemo_steerlm.data.records import Record, read_conversations, read_lines, write_records
from nemo_steerlm.evaluation.samples import spread
from nemo_steerlm.pipeline.manifest import BootstrapSpec
from nemo_steerlm.pipeline.run_context import Run
from nemo_steerlm.pipeline.stages.sample import EVALUATION
from nemo_steerlm.pipeline.steps.annotate import label_and_clean
from nemo_steerlm.pipeline.steps.control_samples import evaluate_model, planned, read_answers
from nemo_steerlm.pipeline.steps.questions import Question, questions

TRIES = 3
"""How often an answer is asked for that was cut at ``maxTokens``, each time with another seed."""
ASKED_LABEL = "asked_label"
"""The key of a sampled turn that holds the label it was asked for under."""
ASKED_LOGPROB = "asked_logprob"
"""The key of its log-probability as the value model reads the answer, where the best of a prompt's answers is kept."""


def sample(run: Run) -> dict[str, Any]:
    """Draw label combinations, answer training prompts under them, label the answers: ``train.jsonl`` for the next training.

    Raises:
        DataError: If no label has the values of ``bootstrap.require``, or no answer can be taught.
    """
    spec = run.pipeline.spec
    how, schema = spec.bootstrap, spec.attributes.schema_()
    train = run.input("annotate", "train.jsonl")
    combinations = sorted({label for c in read_conversations(train) for label in good_labels(c, how.require, schema)})
    if not combinations:
        wanted = ", ".join(f"{name}:{value}" for name, value in how.require.items())
        raise DataError(f"no label in {train} has {wanted}", instead="loosen bootstrap.require")
    round_ = run.stage.round or 0
    asked = questions(train, schema, every=how.contexts == "any")
    requests = requests_of(asked, [schema.parse(label) for label in combinations], how, round_)
    journal = run.folder / "answers.journal.jsonl"
    answers = _whole_answers(run, requests, how, journal)
    drawn = run.folder / "sampled.jsonl"
    pairs = [(request, answer) for request, answer in zip(requests, answers, strict=True) if answer is not None]
    whole = [(request, answer) for request, answer in pairs if answer.text.strip()]
    logprobs = _asked_logprobs(run, whole) if how.keep == "best" else [None] * len(whole)
    records = (_record(request, answer.text, schema, found) for (request, answer), found in zip(whole, logprobs, strict=True))
    if not write_records(drawn, records):
        raise DataError("no answer was whole: each was empty or cut", instead="train the model longer, or raise bootstrap.maxTokens")
    metrics = label_and_clean(run, {"train": drawn}) or {}
    target = run.folder / "train.jsonl"
    labelled = [line.record for line in read_lines(target)]
    kept = kept_records(labelled, how, schema)
    if not kept:
        raise DataError("no answer reads as bootstrap.require wants", instead="sample more, set bootstrap.keep: all, or require less")
    original = originals(train, round(how.mix_original * len(kept)), round_)
    write_records(target, [*kept, *original])
    shutil.copyfile(run.input("annotate", "val.jsonl"), run.folder / "val.jsonl")
    evaluate_model(run, planned(run)).save(run.folder / EVALUATION)
    journal.unlink(missing_ok=True)
    return {
        "combinations": len(combinations),
        "sampled": len(requests),
        "cut": len(requests) - len(pairs),
        "empty": len(pairs) - len(whole),
        **reached(labelled, how.require, schema),
        **metrics,
        "kept": len(kept),
        "original": len(original),
    }


def good_labels(conversation: Conversation, require: Mapping[str, int], schema: AttributeSchema) -> Iterator[str]:
    """The attribute combinations of a conversation's learned turns that have the required values, as label strings without language."""
    for turn in conversation.turns:
        if turn.label is None or turn.speaker == conversation.mask:
            continue
        values = schema.parse(turn.label).values
        if _has(values, require):
            yield schema.encode(values)


def _has(values: Mapping[str, int], require: Mapping[str, int]) -> bool:
    return all(values.get(name) == value for name, value in require.items())


def requests_of(asked: Sequence[Question], labels: Sequence[Label], how: BootstrapSpec, round_: int) -> list[AnswerRequest]:
    """``prompts`` x ``samplesPerPrompt`` requests: questions equally often, labels uniform over ``labels``, in the question's language.

    Where the best answer of a prompt is kept, its answers share one label. Raises DataError where there is no question.
    """
    if not asked:
        raise DataError("no training conversation has an answer, so there is nothing to ask", instead="look at the data source")
    draw = random.Random(round_)
    requests = []
    for place in spread(asked, how.prompts, round_):
        question, one = asked[place], draw.choice(labels)
        for _ in range(how.samples_per_prompt):
            label = one if how.keep == "best" else draw.choice(labels)
            named = msgspec.structs.replace(label, language=question.language)
            requests.append(AnswerRequest(conversation=question.conversation, label=named, seed=draw.randrange(2**31)))
    return requests


def _whole_answers(run: Run, requests: Sequence[AnswerRequest], how: BootstrapSpec, journal: Path) -> list[Answer | None]:
    """An answer to each request; None where every try was cut: a cut answer would teach the model to stop in mid-sentence."""
    options = GenerationOptions(max_tokens=how.max_tokens, temperature=how.temperature, top_k=how.top_k)
    answers: dict[int, Answer] = {}
    for attempt in range(TRIES):
        missing = [i for i in range(len(requests)) if i not in answers]
        if not missing:
            break
        again = [msgspec.structs.replace(requests[i], seed=requests[i].seed + attempt) for i in missing]
        found = generate_answers(run.servers["steer"], again, options, lambda n: run.progress(n, len(requests), phase="sampling"), journal)
        answers |= {i: answer for i, answer in zip(missing, found, strict=True) if answer.finish != "length"}
    return [answers.get(i) for i in range(len(requests))]


def _asked_logprobs(run: Run, whole: Sequence[tuple[AnswerRequest, Answer]]) -> list[float | None]:
    """Of each answer the log-probability that the value model gives the whole label it was asked for under."""
    asked, answers = [request.conversation for request, _ in whole], [answer for _, answer in whole]
    labels = [request.label for request, _ in whole if request.label is not None]
    read = read_answers(run, asked, answers, lambda n: run.progress(n, len(whole), phase="choosing"), labels)
    return [found.logprob for found in read]


def _record(request: AnswerRequest, text: str, schema: AttributeSchema, logprob: float | None = None) -> Record:
    conversation = request.conversation
    turns: list[Record] = [{"value": turn.text, "from": turn.speaker} for turn in conversation.turns]
    assert request.label is not None  # a round asks under labels
    asked = schema.encode(request.label.values, request.label.language)
    more = {} if logprob is None else {ASKED_LOGPROB: logprob}
    turns.append({"value": text, "from": ASSISTANT, ASKED_LABEL: asked, **more})
    return {"conversations": turns, "system": conversation.system, "mask": conversation.mask, "type": "VALUE_TO_TEXT"}


def kept_records(labelled: Sequence[Record], how: BootstrapSpec, schema: AttributeSchema) -> list[Record]:
    """Of the labelled answers those to teach, as ``bootstrap.keep`` says."""
    if how.keep == "all":
        return list(labelled)
    if how.keep == "reached":
        return [record for record in labelled if _has(_labels(record, schema)[1].values, how.require)]
    best: dict[tuple[Any, ...], Record] = {}
    for record in labelled:
        *before, answer = record["conversations"]
        key = (record["system"], *((turn["from"], turn["value"]) for turn in before), answer[ASKED_LABEL])
        if key not in best or answer[ASKED_LOGPROB] > best[key]["conversations"][-1][ASKED_LOGPROB]:
            best[key] = record
    return list(best.values())


def reached(labelled: Sequence[Record], require: Mapping[str, int], schema: AttributeSchema) -> dict[str, float]:
    """Asked against read in the sampling itself: what a round costs nothing to tell, and what falls from round to round if rounds help."""
    pairs = [_labels(record, schema) for record in labelled]
    distances = [abs(read.values[name] - value) for asked, read in pairs for name, value in asked.values.items() if name in read.values]
    if not distances:
        return {}
    return {
        "askedError": float(np.mean(distances)),
        "askedHitRate": float(np.mean([d == 0 for d in distances])),
        "reached": float(np.mean([_has(read.values, require) for _, read in pairs])),
    }


def _labels(record: Record, schema: AttributeSchema) -> tuple[Label, Label]:
    """What a sampled answer was asked for, and what is read in it."""
    answer = record["conversations"][-1]
    return schema.parse(answer[ASKED_LABEL]), schema.parse(answer["label"])


def originals(train: Path, count: int, seed: int) -> list[Record]:
    """``count`` annotated records, each equally often, in an order that depends on ``seed`` only."""
    if not count:
        return []
    records = [line.record for line in read_lines(train)]
    return [records[i] for i in spread(records, count, seed)]
