"""What an evaluation keeps of the candidates among which the value model chose, and when baselines are chosen among too."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import msgspec
import pytest

from nemo_steerlm.core.conversation import Conversation, Turn
from nemo_steerlm.evaluation.samples import Sample
from nemo_steerlm.pipeline.manifest import parse
from nemo_steerlm.pipeline.steps.baselines import baselines
from nemo_steerlm.pipeline.steps.control_samples import Evaluated, answered, generation_options, plan_of
from nemo_steerlm.pipeline.steps.questions import Question
from tests.annotation.labelling_server import Handler
from tests.annotation.running import served
from tests.pipeline.manifests import with_field

READS = {"quality": 0, "humor": 1}
"""Which digit of an answer is its reading."""


class Writer(Handler):
    """Answers with two digits that follow from the seed alone, whatever is asked."""

    def do_POST(self):  # noqa: N802 - the library's name
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        digits = random.Random(body["seed"]).choices("01234", k=len(READS))
        self.answer(200, {"choices": [{"message": {"content": "".join(digits)}, "finish_reason": "stop"}]})


class Reader(Handler):
    """Reads its digits, and finds a label the more probable, the nearer they are."""

    def do_POST(self):  # noqa: N802 - the library's name
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        labels = body.get("labels") or [[None]] * len(body["conversations"])
        results = []
        for record, (label,) in zip(body["conversations"], labels, strict=True):
            found = {name: int(record["conversations"][-1]["value"][digit]) for name, digit in READS.items()}
            turn = {"attributes": {name: {"expected": value, "probabilities": {}} for name, value in found.items()}}
            if label:
                turn["evaluated"] = {"logprob": -sum(abs(found[name] - label[name]) for name in READS) / 10}
            results.append({"turns": [turn]})
        self.answer(200, {"results": results})


@pytest.fixture
def evaluating(tmp_path):
    """A function that asks as ``spec.evaluate`` says: what the model answers, and what the baselines do."""

    def ask(**fields):
        manifest = with_field("spec.evaluate", {"samplesPerLevel": 2, "jointRequests": 3, "judges": {"quality": "words"}, **fields})
        manifest["spec"]["attributes"] = {"custom": [{"name": name} for name in READS]}
        pipeline = parse(manifest, "m")
        how = pipeline.spec.evaluate
        question = Question(conversation=Conversation(turns=(Turn(speaker="User", text="Q"),)), language=None)
        plan = plan_of([question], pipeline.spec.attributes.schema_(), how)
        with served(Writer, info=None) as writer, served(Reader, info=None) as reader:
            servers = {"steer": [writer], "value": [reader]}
            run = SimpleNamespace(pipeline=pipeline, servers=servers, folder=tmp_path, progress=progress)
            return answered(run, "train-steer", plan, generation_options(how)), baselines(run, plan, []).samples

    def progress(done, total, **_):
        assert done <= total

    return ask


def distance(sample, read):
    return sum(abs(read[name] - value) for name, value in sample.asked.items())


def test_the_chosen_answer_brings_all_candidates_and_how_the_first_one_reads(evaluating):
    samples, _ = evaluating(bestOf=4)
    once, _ = evaluating()
    assert len(samples) == len(once) == 2 * 5 * 2 + 3
    for sample, alone in zip(samples, once, strict=True):
        assert len(sample.candidates) == 4
        distances = [distance(sample, candidate.expected) for candidate in sample.candidates]
        assert distance(sample, sample.read) == min(distances)
        assert sample.candidates[distances.index(min(distances))].answer == sample.answer
        assert [candidate.logprob for candidate in sample.candidates] == pytest.approx([-d / 10 for d in distances])
        assert [candidate.judged for candidate in sample.candidates] == [1.0 if sample.attribute == "quality" else None] * 4
        # What it answers by itself is what it answers where it is asked once.
        assert sample.single == alone
    assert any(sample.answer != sample.single.answer for sample in samples)
    assert msgspec.json.decode(msgspec.json.encode(samples), type=list[Sample]) == samples


def test_answers_that_were_chosen_are_not_compared_with_others(evaluating):
    made = [Evaluated(model="m", asked="", options=None, samples=evaluating(bestOf=n)[0]) for n in (1, 4)]
    assert made[1].comparable(made[1])
    assert not made[0].comparable(made[1])


@pytest.mark.parametrize("chosen", [False, True])
def test_baselines_answer_once_unless_the_manifest_wants_the_choice_for_them_too(evaluating, chosen):
    model, others = evaluating(bestOf=4, baselines=["unlabelled"], bestOfBaselines=chosen, jointRequests=0)
    # This writer heeds no label, so that the two answer alike.
    steered = [msgspec.structs.replace(sample, model="unlabelled") for sample in model]
    found = others["unlabelled"]
    assert [sample.single for sample in found] == [sample.single for sample in steered]
    assert {len(sample.candidates) for sample in found} == {4 if chosen else 0}
    assert ([sample.answer for sample in found] == [sample.answer for sample in steered]) is chosen
