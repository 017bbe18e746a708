"""Answers for the figures of control: held-out prompts under every level of every steered attribute, read and judged."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from nemo_steerlm.client.bulk import Answer, AnswerRequest, GenerationOptions, TurnReading, generate_answers, read_turns
from nemo_steerlm.core.attributes import AttributeSchema
from nemo_steerlm.core.conversation import ASSISTANT, Conversation, Turn
from nemo_steerlm.core.encoding import encode_spans
from nemo_steerlm.core.errors import DataError
from nemo_steerlm.core.files import atomic_write
from nemo_steerlm.core.labels import Label
from nemo_steerlm.core.template import Template
from nemo_steerlm.core.tokenization import load_tokenizer
from nemo_steerlm.data.records import read_conversations
from nemo_steerlm.evaluation.judges import judge
from nemo_steerlm.evaluation.samples import Candidate, Sample, candidates_of, spread
from nemo_steerlm.inference.control_job import Asked, ControlJob
from nemo_steerlm.pipeline import registry
from nemo_steerlm.pipeline.evaluate_spec import EvaluateSpec
from nemo_steerlm.pipeline.manifest import PipelineSpec
from nemo_steerlm.pipeline.run_context import Run
from nemo_steerlm.pipeline.stages import MODEL_FOLDER
from nemo_steerlm.pipeline.steps.questions import Question, questions


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One answer of the plan."""

    attribute: str
    """As ``Sample.attribute``."""
    level: int
    question: Question
    asked: Label
    seed: int


class Evaluated(msgspec.Struct, frozen=True, kw_only=True):
    """The answers of one model, and what was asked of it: answers of two models can be compared where it was the same."""

    model: str
    asked: str
    """A digest of everything that was asked."""
    options: GenerationOptions
    samples: list[Sample]

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        with atomic_write(path) as file:
            file.write(msgspec.json.encode(self).decode())

    @classmethod
    def load(cls, path: Path) -> Evaluated:
        """Read what ``save`` wrote."""
        return msgspec.json.decode(path.read_bytes(), type=cls)

    def comparable(self, other: Evaluated) -> bool:
        """Whether both were asked the same, and equally often."""
        often = candidates_of(self.samples) == candidates_of(other.samples)
        return often and self.asked == other.asked and self.options == other.options


def planned(run: Run) -> list[Request]:
    """What the manifest's evaluation asks of every model."""
    spec = run.pipeline.spec
    schema = spec.attributes.schema_()
    return plan_of(held_out_questions(run, spec, schema), schema, spec.evaluate)


MOST_TO_CHOOSE = 16
"""Answers a level at each validation of a training, at most: it is done several times."""


def write_control_job(run: Run, path: Path) -> None:
    """Write what a training asks at each validation to choose its step by control."""
    spec = run.pipeline.spec
    schema, how = spec.attributes.schema_(), spec.evaluate
    fewer = how.model_copy(update={"samples_per_level": min(how.samples_per_level, MOST_TO_CHOOSE), "joint_requests": 0})
    plan = plan_of(held_out_questions(run, spec, schema), schema, fewer)
    asked = [
        Asked(
            conversation=r.question.conversation.to_prompt_record(),
            label=schema.encode(r.asked.values, r.asked.language),
            attribute=r.attribute,
            level=r.level,
            seed=r.seed,
        )
        for r in plan
    ]
    job = ControlJob(
        value_model=str(run.input(registry.trainings("value")[0], MODEL_FOLDER)),
        asked=asked,
        max_tokens=how.max_tokens,
        temperature=how.temperature,
        top_k=how.top_k,
    )
    with atomic_write(path) as file:
        file.write(msgspec.json.encode(job).decode())


def evaluate_model(run: Run, plan: Sequence[Request]) -> Evaluated:
    """Ask the run's steer servers what is planned, and read and judge the answers."""
    how = run.pipeline.spec.evaluate
    model = next(need.stage for need in run.stage.servers if need.role == "steer")
    options = generation_options(how)
    return Evaluated(model=model, asked=_digest(plan), options=options, samples=answered(run, model, plan, options))


def generation_options(how: EvaluateSpec) -> GenerationOptions:
    """How the answers are sampled."""
    return GenerationOptions(max_tokens=how.max_tokens, temperature=how.temperature, top_k=how.top_k, guidance_scale=how.guidance_scale)


def _digest(plan: Sequence[Request]) -> str:
    asked = [
        (r.attribute, r.level, r.seed, r.asked.to_mapping(), c.system, [(t.speaker, t.text) for t in c.turns])
        for r in plan
        for c in (r.question.conversation,)
    ]
    return hashlib.blake2b(msgspec.json.encode(asked, order="sorted"), digest_size=16).hexdigest()


def held_out_questions(run: Run, spec: PipelineSpec, schema: AttributeSchema) -> list[Question]:
    """The manifest's prompts, or those of the validation records that leave room for an answer, each once.

    Raises:
        DataError: If no prompt leaves room for an answer.
    """
    path = run.input("prepare", "annotate_val.jsonl")
    if spec.evaluate.prompts:
        first = next(iter(read_conversations(path)))
        asked = ((Turn(speaker=first.mask, text=text),) for text in spec.evaluate.prompts)
        return [
            Question(conversation=Conversation(turns=turns, system=first.system, mask=first.mask), language=schema.default_language)
            for turns in asked
        ]
    tokenizer = load_tokenizer(run.input("prepare", "tokenizer"))
    template = Template.of(tokenizer, spec.model.chat_tokens.tokens(), spec.model.layout)
    label = schema.encode(schema.defaults())
    room = spec.model.max_sequence_length - spec.evaluate.max_tokens
    fitting = [
        q
        for q in questions(path, schema)
        if len(encode_spans(template.reply_prompt(q.conversation, ASSISTANT, label), tokenizer).ids) <= room
    ]
    if not fitting:
        raise DataError(
            f"no validation prompt leaves room for {spec.evaluate.max_tokens} tokens within {spec.model.max_sequence_length}",
            instead="lower evaluate.maxTokens, raise model.maxSequenceLength, or give evaluate.prompts",
        )
    return fitting


def plan_of(asked: Sequence[Question], schema: AttributeSchema, how: EvaluateSpec) -> list[Request]:
    """Each question in its own language: under every level of each steered attribute, and under random levels of all of them."""
    base = {**schema.defaults(), **how.base}
    steered = how.attributes or schema.names
    chosen = [asked[i] for i in spread(asked, how.samples_per_level, how.seed)]
    wanted = [(name, level, q, {**base, name: level}) for name in steered for level in schema[name].values for q in chosen]
    if len(steered) > 1:
        draw = random.Random(how.seed)
        wanted += [
            ("", 0, asked[i], {**base, **{name: draw.choice(schema[name].values) for name in steered}})
            for i in spread(asked, how.joint_requests, how.seed)
        ]
    return [
        Request(attribute=name, level=level, question=q, asked=Label(values=values, language=q.language), seed=how.seed + i)
        for i, (name, level, q, values) in enumerate(wanted)
    ]


def answered(run: Run, model: str, plan: Sequence[Request], options: GenerationOptions) -> list[Sample]:
    """The samples of ``plan``, in order. Of ``evaluate.bestOf`` candidates the one that reads most like what was asked."""
    count = run.pipeline.spec.evaluate.best_of
    asks = [AnswerRequest(conversation=r.question.conversation, label=r.asked, seed=seed) for r, seed in candidates(plan, count)]
    total = len(asks) + readings(len(plan), count)
    journal = run.folder / f"answers-{model}.journal.jsonl"
    answers = generate_answers(run.servers["steer"], asks, options, lambda n: run.progress(n, total, phase="answering"), journal)
    samples = read_samples(run, model, plan, answers, lambda n, phase: run.progress(len(asks) + n, total, phase=phase))
    journal.unlink(missing_ok=True)
    return samples


def candidates(plan: Sequence[Request], count: int) -> Iterator[tuple[Request, int]]:
    """Each request ``count`` times in a row, with the seed of each answer. The first has the seed that it has where it is the only one."""
    return ((r, r.seed + candidate * len(plan)) for r in plan for candidate in range(count))


def chosen(logprobs: Sequence[float], count: int) -> list[int]:
    """Of each ``count`` answers in a row the position of the one under which the whole asked label is most probable.

    All attributes of the label count: choosing by the steered one alone lets the others drift.
    """
    return [max(range(i, i + count), key=logprobs.__getitem__) for i in range(0, len(logprobs), count)]


def readings(requests: int, count: int) -> int:
    """How many answers ``read_samples`` reads at most: each candidate under its label, and the first and the chosen one freely."""
    return requests * (count + 2) if count > 1 else requests


def read_samples(
    run: Run, model: str, plan: Sequence[Request], answers: Sequence[Answer], progress: Callable[[int, str], None]
) -> list[Sample]:
    """What ``model`` answered to each request of ``plan``, equally often, chosen and read by the run's value servers and judged."""
    count = len(answers) // len(plan) if plan else 1
    places: Sequence[int] = range(len(plan))
    told: list[TurnReading] = []
    if count > 1:
        asked, labels = zip(*((r.question.conversation, r.asked) for r, _ in candidates(plan, count)), strict=True)
        told = read_answers(run, asked, answers, lambda n: progress(n, "choosing"), labels)
        places = chosen([reading.logprob or 0.0 for reading in told], count)
    # What is chosen, and what would have been the answer without a choice.
    wanted = sorted({*places, *range(0, len(answers), count)})
    found = read_answers(
        run,
        [plan[i // count].question.conversation for i in wanted],
        [answers[i] for i in wanted],
        lambda n: progress(len(told) + n, "reading"),
    )
    read = {i: reading.expected for i, reading in zip(wanted, found, strict=True)}
    judges = {name: judge(kind) for name, kind in run.pipeline.spec.evaluate.judges.items()}
    samples = []
    for n, (request, place) in enumerate(zip(plan, places, strict=True)):
        said: Callable[[str], float | None] = judges.get(request.attribute, lambda _: None)
        among = [
            Candidate(
                answer=answers[i].text,
                finish=answers[i].finish,
                logprob=told[i].logprob or 0.0,
                expected=told[i].expected,
                read=read.get(i, {}),
                judged=said(answers[i].text),
            )
            for i in range(n * count, (n + 1) * count)
            if told
        ]
        samples.append(_sample(model, request, answers[place], read[place], said(answers[place].text), among))
    return samples


def _sample(model: str, request: Request, answer: Answer, read: dict[str, float], judged: float | None, among: list[Candidate]) -> Sample:
    return Sample(
        attribute=request.attribute,
        level=request.level,
        asked=request.asked.values,
        model=model,
        prompt=request.question.conversation.turns[-1].text,
        answer=answer.text,
        finish=answer.finish,
        read=read,
        judged=judged,
        candidates=among,
    )


def read_answers(
    run: Run,
    asked: Sequence[Conversation],
    answers: Sequence[Answer],
    progress: Callable[[int], None],
    labels: Sequence[Label] | None = None,
) -> list[TurnReading]:
    """What the run's value servers read in the answer to each of ``asked``, or how probable its label is."""
    whole = [
        msgspec.structs.replace(conversation, turns=(*conversation.turns, Turn(speaker=ASSISTANT, text=answer.text)))
        for conversation, answer in zip(asked, answers, strict=True)
    ]
    return read_turns(run.servers["value"], whole, progress, labels)
