"""What a bootstrap round asks, and which of the answers it teaches."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from nemo_steerlm.core.attributes import Attribute, AttributeSchema
from nemo_steerlm.core.conversation import Conversation, Turn
from nemo_steerlm.core.errors import DataError, UsageError
from nemo_steerlm.core.labels import Label
from nemo_steerlm.data.records import write_records
from nemo_steerlm.pipeline.evaluate_spec import EvaluateSpec
from nemo_steerlm.pipeline.manifest import BootstrapSpec, load, parse
from nemo_steerlm.pipeline.stages import stages
from nemo_steerlm.pipeline.steps.control_samples import plan_of
from nemo_steerlm.pipeline.steps.questions import Question, questions
from nemo_steerlm.pipeline.steps.sample import _whole_answers, good_labels, kept_records, originals, reached, requests_of
from tests.annotation.labelling_server import Handler
from tests.annotation.running import served
from tests.pipeline.manifests import with_field

SCHEMA = AttributeSchema(attributes=(Attribute(name="quality"), Attribute(name="humor")), languages=("en", "es", "zh"))
GOOD = [Label(values={"quality": 4, "humor": n}) for n in range(3)]


def spec(**fields):
    return BootstrapSpec.model_validate({"rounds": 1, "requireAny": "require" not in fields, **fields})


def asking(text, language="en"):
    return Question(conversation=Conversation(turns=(Turn(speaker="User", text=text),), system="S"), language=language)


def test_the_one_question_of_rated_text_is_asked_as_often_as_all_prompts_together():
    requests = requests_of([asking("Write a tweet.")], GOOD, spec(prompts=30, samplesPerPrompt=4), 1)
    assert len(requests) == 120
    assert len({r.seed for r in requests}) == 120
    assert {r.label.values["humor"] for r in requests} == {0, 1, 2}


def test_where_there_are_more_questions_each_is_asked_once():
    requests = requests_of([asking(str(n)) for n in range(50)], GOOD, spec(prompts=20, samplesPerPrompt=3), 1)
    assert sorted(Counter(r.conversation for r in requests).values()) == [3] * 20
    again = requests_of([asking(str(n)) for n in range(50)], GOOD, spec(prompts=20, samplesPerPrompt=3), 2)
    assert requests != again


def test_a_question_is_asked_in_its_own_language():
    asked = [asking("Hello?", "en"), asking("¿Hola?", "es")]
    requests = requests_of(asked, GOOD, spec(prompts=2, samplesPerPrompt=8), 1)
    assert {(r.conversation.turns[0].text, r.label.language) for r in requests} == {("Hello?", "en"), ("¿Hola?", "es")}


def test_an_evaluation_asks_in_the_questions_language_too():
    how = EvaluateSpec.model_validate({"samplesPerLevel": 2, "jointRequests": 2})
    plan = plan_of([asking("Hello?", "en"), asking("¿Hola?", "es")], SCHEMA, how)
    assert {(r.question.conversation.turns[0].text, r.asked.language) for r in plan} == {("Hello?", "en"), ("¿Hola?", "es")}


def test_an_answer_that_is_cut_is_asked_again_and_then_left_out(tmp_path):
    """A cut answer would teach the model to stop in mid-sentence."""
    seeds = []

    class Chats(Handler):
        def do_POST(self):  # noqa: N802 - the library's name
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            text = body["messages"][-1]["content"]
            seeds.append((text, body["seed"]))
            tries = sum(asked == text for asked, _ in seeds)
            finish = "stop" if text == "whole" or (text == "cut once" and tries == 2) else "length"
            self.answer(200, {"choices": [{"message": {"content": f"{text} {tries}"}, "finish_reason": finish}]})

    how = spec(prompts=3, samplesPerPrompt=1, maxTokens=9)
    requests = requests_of([asking(text) for text in ("whole", "cut once", "always cut")], GOOD, how, 1)
    with served(Chats, info=None) as url:
        run = SimpleNamespace(servers={"steer": [url]}, progress=lambda *_, **__: None)
        found = _whole_answers(run, requests, how, tmp_path / "journal.jsonl")
    texts = {request.conversation.turns[0].text: answer and answer.text for request, answer in zip(requests, found, strict=True)}
    assert texts == {"whole": "whole 1", "cut once": "cut once 2", "always cut": None}
    again = [seed for text, seed in seeds if text == "always cut"]
    assert len(again) == len(set(again)) == 3, "each try has another seed"


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("examples/pipelines/*.yaml")), ids=lambda path: path.stem)
def test_the_examples_read_only_turns_that_the_value_model_learned_to_read(path):
    assert load(path).spec.annotate.turns == "unmasked"


def test_nothing_to_ask_is_said():
    with pytest.raises(DataError, match="nothing to ask"):
        requests_of([], GOOD, spec(), 1)


def write(path, *conversations):
    turns = [
        [{"from": ("User", "Assistant")[i % 2], "value": text, **({"label": label} if label else {})} for i, (text, label) in enumerate(c)]
        for c in conversations
    ]
    write_records(path, ({"system": "", "mask": "User", "conversations": t} for t in turns))
    return path


def test_contexts_are_first_questions_or_what_stands_before_every_answer(tmp_path):
    path = write(
        tmp_path / "r.jsonl",
        [("Q", None), ("A", "quality:4,lang:es"), ("R", None), ("B", "quality:1,lang:zh")],
        [("Q", None), ("C", "quality:0,lang:es")],
        [("only", None)],
    )
    first, every = questions(path, SCHEMA), questions(path, SCHEMA, every=True)
    assert [([t.text for t in q.conversation.turns], q.language) for q in first] == [(["Q"], "es")]
    assert [([t.text for t in q.conversation.turns], q.language) for q in every] == [(["Q"], "es"), (["Q", "A", "R"], "zh")]
    assert all(t.label is None for q in every for t in q.conversation.turns)


def test_a_language_that_no_answer_says_is_the_questions_or_the_schemas(tmp_path):
    path = write(tmp_path / "r.jsonl", [("Q", "quality:4,lang:zh"), ("A", None)], [("P", None), ("A", "quality:4")])
    assert [q.language for q in questions(path, SCHEMA)] == ["zh", "en"]
    plain = AttributeSchema(attributes=SCHEMA.attributes)
    assert [q.language for q in questions(write(tmp_path / "p.jsonl", [("Q", None), ("A", None)]), plain)] == [None]


def test_combinations_are_of_answers_that_are_good_and_carry_no_language():
    turns = tuple(
        Turn(speaker=s, text="t", label=f"quality:{q},humor:1,lang:zh") for s, q in (("User", 4), ("Assistant", 4), ("Assistant", 0))
    )
    assert list(good_labels(Conversation(turns=turns, mask="User"), {"quality": 4}, SCHEMA)) == ["quality:4,humor:1"]


def labelled(asked, read, text="a", logprob=-1.0):
    answer = {"from": "Assistant", "value": text, "asked_label": asked, "asked_logprob": logprob, "label": read}
    turns = [{"from": "User", "value": "Q"}, answer]
    return {"system": "", "mask": "User", "conversations": turns}


ROUND = [
    labelled("quality:4,humor:0", "quality:0,humor:2", "far", -3.0),
    labelled("quality:4,humor:0", "quality:3,humor:0", "near", -2.0),
    labelled("quality:4,humor:2", "quality:4,humor:1", "other"),
]


@pytest.mark.parametrize(("keep", "texts"), [("all", ["far", "near", "other"]), ("reached", ["other"]), ("best", ["near", "other"])])
def test_which_answers_are_taught(keep, texts):
    kept = kept_records(ROUND, spec(require={"quality": 4}, keep=keep), SCHEMA)
    assert [record["conversations"][-1]["value"] for record in kept] == texts


def test_the_best_of_a_prompt_share_a_label():
    requests = requests_of([asking(str(n)) for n in range(20)], GOOD, spec(prompts=20, samplesPerPrompt=4, keep="best"), 1)
    by_prompt = {}
    for request in requests:
        by_prompt.setdefault(request.conversation, set()).add(request.label.values["humor"])
    assert {len(labels) for labels in by_prompt.values()} == {1}
    assert len(set().union(*by_prompt.values())) == 3


def test_asked_against_read_is_a_figure_of_the_round():
    assert reached(ROUND, {"quality": 4}, SCHEMA) == {
        "askedError": pytest.approx((1 + 0 + 4 + 2 + 0 + 1) / 6),
        "askedHitRate": pytest.approx(2 / 6),
        "reached": pytest.approx(1 / 3),
    }


def test_original_records_are_mixed_in_evenly(tmp_path):
    path = write(tmp_path / "r.jsonl", *([(f"Q{n}", None), ("A", None)] for n in range(4)))
    assert len(originals(path, 8, 1)) == 8
    assert set(Counter(r["conversations"][0]["value"] for r in originals(path, 8, 1)).values()) == {2}
    assert originals(path, 0, 1) == []


@pytest.mark.parametrize("fields", [{"rounds": 1}, {"rounds": 1, "require": {"quality": 4}, "requireAny": True}])
def test_rounds_want_to_be_told_what_is_good(fields):
    with pytest.raises(UsageError, match="bootstrap: rounds need require"):
        parse(with_field("spec.bootstrap", fields), "m")


def test_a_round_s_rates_must_go_with_those_it_does_not_name():
    with pytest.raises(UsageError, match=r"bootstrap\.train with trainSteer: learningRate 1e-06 must be above minLearningRate 5e-06"):
        parse(with_field("spec.bootstrap", {"train": {"learningRate": 1e-6}}), "m")


def graph(**bootstrap):
    manifest = with_field("spec.bootstrap", {"require": {"quality": 4}, **bootstrap})
    manifest["spec"]["annotate"] = {"servers": {"replicas": 3}}
    return {stage.name: stage for stage in stages(parse(manifest, "m"))}


def hashes(found):
    outputs = {name: dict.fromkeys(stage.outputs, "sha256:0") for name, stage in found.items()}
    return {name: stage.input_hash(dict.fromkeys(stage.files, "sha256:1"), outputs) for name, stage in found.items()}


def test_a_round_has_its_own_hyperparameters_and_more_rounds_leave_it_alone():
    one, two = graph(rounds=1), graph(rounds=2)
    assert hashes(one).items() - hashes(two).items() == {("evaluate", hashes(one)["evaluate"])}
    own = graph(rounds=1, train={"maxSteps": 7, "learningRate": 1e-5})
    training = own["bootstrap-1-train"].training.spec
    assert (training.max_steps, training.learning_rate) == (7, 1e-5)
    assert training.global_batch_size == own["train-steer"].training.spec.global_batch_size
    changed = {name for name, value in hashes(own).items() if value != hashes(one)[name]}
    assert changed == {"bootstrap-1-train"}


def test_a_round_has_as_many_servers_of_each_model_as_are_wanted():
    needs = {(need.role, need.replicas) for need in graph(rounds=1)["bootstrap-1-sample"].servers}
    assert needs == {("value", 3), ("steer", 3)}
