"""What the SteerLM model is compared with on the same prompts: the base model asked in words, and itself asked under no label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from nemo_steerlm.client.bulk import Answer, AnswerRequest, generate_answers
from nemo_steerlm.core.attributes import Attribute
from nemo_steerlm.core.conversation import Conversation
from nemo_steerlm.core.files import atomic_write
from nemo_steerlm.evaluation.samples import Sample
from nemo_steerlm.inference.base_job import BaseAnswer, BaseJob, BaseRequest, BaseResult, Likelihood
from nemo_steerlm.pipeline.evaluate_spec import EvaluateSpec
from nemo_steerlm.pipeline.run_context import Run
from nemo_steerlm.pipeline.steps.child import call
from nemo_steerlm.pipeline.steps.control_samples import Request, candidates, generation_options, read_samples, readings

BASE_ANSWERS = "nemo_steerlm.inference.base_answers"
PROMPTED, UNLABELLED = "prompted", "unlabelled"


class Baselines(msgspec.Struct, frozen=True, kw_only=True):
    """Answers of the baselines, by name, and the likelihoods of the texts that were given."""

    samples: dict[str, list[Sample]]
    likelihoods: list[Likelihood]


def baselines(run: Run, plan: Sequence[Request], texts: Sequence[str]) -> Baselines:
    """Ask what ``evaluate.baselines`` names for the steered answers of ``plan``; of ``texts`` the likelihoods where they are wanted."""
    how = run.pipeline.spec.evaluate
    steered = [request for request in plan if request.attribute]
    samples: dict[str, list[Sample]] = {}
    likelihoods: list[Likelihood] = []
    if UNLABELLED in how.baselines:
        samples[UNLABELLED] = _unlabelled(run, steered)
    if how.needs_base:
        result = _base_model(run, steered if PROMPTED in how.baselines else [], texts)
        likelihoods = result.texts
        if PROMPTED in how.baselines:
            samples[PROMPTED] = _asked_in_words(run, steered, result.answers)
    return Baselines(samples=samples, likelihoods=likelihoods)


def _count(how: EvaluateSpec) -> int:
    """How often a baseline answers each request."""
    return how.best_of if how.best_of_baselines else 1


def _unlabelled(run: Run, plan: Sequence[Request]) -> list[Sample]:
    how = run.pipeline.spec.evaluate
    asks = [AnswerRequest(conversation=r.question.conversation, label=None, seed=seed) for r, seed in candidates(plan, _count(how))]
    options = msgspec.structs.replace(generation_options(how), guidance_scale=1.0)
    journal = run.folder / f"answers-{UNLABELLED}.journal.jsonl"
    answers = generate_answers(run.servers["steer"], asks, options, lambda n: run.progress(n, len(asks), phase=UNLABELLED), journal)
    samples = _read(run, UNLABELLED, plan, answers)
    journal.unlink(missing_ok=True)
    return samples


def _read(run: Run, name: str, plan: Sequence[Request], answers: Sequence[Answer]) -> list[Sample]:
    total = readings(len(plan), _count(run.pipeline.spec.evaluate))
    return read_samples(run, name, plan, answers, lambda n, phase: run.progress(n, total, phase=f"{phase} {name}"))


def _asked_in_words(run: Run, plan: Sequence[Request], answers: Sequence[BaseAnswer]) -> list[Sample]:
    samples = _read(run, PROMPTED, plan, [Answer(text=answer.text, finish=answer.finish) for answer in answers])
    likelihoods = {answer.text: answer.likelihood for answer in answers}
    return [with_likelihood(sample, likelihoods[sample.answer]) for sample in samples]


def with_likelihood(sample: Sample, likelihood: Likelihood | None) -> Sample:
    """``sample`` with how likely its text is to the base model, where that is known."""
    return sample if likelihood is None else msgspec.structs.replace(sample, nll=likelihood.nll, tokens=likelihood.tokens)


def _base_model(run: Run, plan: Sequence[Request], texts: Sequence[str]) -> BaseResult:
    """The base model's answers to ``plan``, and how likely ``texts`` are to it, from a process of its own."""
    spec = run.pipeline.spec
    schema, how = spec.attributes.schema_(), spec.evaluate
    job = BaseJob(
        model=str(run.resolve(spec.model.base, "model")),
        requests=[
            BaseRequest(messages=in_words(r.question.conversation, sentence(schema[r.attribute], r.level, how.wording)), seed=seed)
            for r, seed in candidates(plan, _count(how))
        ],
        max_tokens=how.max_tokens,
        temperature=how.temperature,
        top_k=how.top_k,
        likelihoods=how.perplexity,
        texts=list(texts) if how.perplexity else [],
    )
    asked, answered = run.folder / "base.job.json", run.folder / "base.result.json"
    with atomic_write(asked) as file:
        file.write(msgspec.json.encode(job).decode())
    call("base-model", run, [BASE_ANSWERS, str(asked), str(answered)])
    result = msgspec.json.decode(answered.read_bytes(), type=BaseResult)
    asked.unlink()
    answered.unlink()
    return result


def sentence(attribute: Attribute, level: int, wording: Mapping[str, Sequence[str]]) -> str:
    """What the base model is told instead of a label."""
    if attribute.name in wording:
        return wording[attribute.name][level - attribute.low]
    meaning = f" ({attribute.description})" if attribute.description else ""
    return f"On a scale from {attribute.low} to {attribute.high}, the {attribute.name}{meaning} of your answer must be {level}."


def in_words(conversation: Conversation, instruction: str) -> list[dict[str, str]]:
    """A conversation as messages, with ``instruction`` at the end of the last one."""
    messages = [{"role": "system", "content": conversation.system}] if conversation.system.strip() else []
    messages += [
        {"role": "user" if turn.speaker == conversation.mask else "assistant", "content": turn.text} for turn in conversation.turns
    ]
    messages[-1] = {**messages[-1], "content": f"{messages[-1]['content']}\n\n{instruction}"}
    return messages
