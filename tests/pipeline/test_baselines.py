"""What the SteerLM model is compared with, and which of several candidates an evaluation takes."""

from __future__ import annotations

import pytest

from nemo_steerlm.core.attributes import Attribute
from nemo_steerlm.core.conversation import Conversation, Turn
from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.evaluation.control import control
from nemo_steerlm.evaluation.samples import Sample
from nemo_steerlm.evaluation.summary import summary
from nemo_steerlm.inference.base_job import Likelihood
from nemo_steerlm.pipeline.manifest import parse
from nemo_steerlm.pipeline.stages import find, stages
from nemo_steerlm.pipeline.steps.baselines import in_words, sentence, with_likelihood
from nemo_steerlm.pipeline.steps.control_samples import chosen
from tests.pipeline.manifests import with_field

POSITIVITY = Attribute(name="positivity", low=-1, high=1, description="from negative to positive")


def asking(*texts, system=""):
    turns = tuple(Turn(speaker=("User", "Assistant")[i % 2], text=text) for i, text in enumerate(texts))
    return Conversation(turns=turns, system=system)


def test_a_level_is_told_in_the_manifests_words_or_as_a_number_on_its_scale():
    wording = {"positivity": ("Be negative.", "Be neutral.", "Be positive.")}
    assert [sentence(POSITIVITY, level, wording) for level in POSITIVITY.values] == list(wording["positivity"])
    assert sentence(POSITIVITY, 1, {}) == "On a scale from -1 to 1, the positivity (from negative to positive) of your answer must be 1."


def test_it_stands_behind_the_question():
    assert in_words(asking("Hi", "Ho", "And?", system="Be kind."), "Be brief.") == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
        {"role": "user", "content": "And?\n\nBe brief."},
    ]
    assert in_words(asking("Hi"), "Be brief.")[0]["role"] == "user", "an empty system prompt is none"


def test_of_each_request_the_candidate_with_the_most_probable_label_is_taken():
    assert chosen([-3.0, -1.0, -2.0, -0.5, -4.0, -0.6], 3) == [1, 3]
    assert chosen([-3.0, -1.0], 1) == [0, 1]


def test_perplexity_is_that_of_all_tokens_of_a_level():
    made = [
        with_likelihood(Sample(attribute="a", level=level, prompt="p", answer="x y", read={"a": 1.0}), Likelihood(nll=nll, tokens=tokens))
        for level, nll, tokens in ((0, 2.0, 1), (0, 1.0, 2), (1, 0.0, 4))
    ]
    (table,) = control(made, {})
    assert [level.fluency.perplexity for level in table.levels] == pytest.approx([2.718281828, 1.0])
    assert "base perplexity         2.718        1" in summary({}, [table])
    (without,) = control([Sample(attribute="a", level=n, prompt="p", answer="x", read={"a": 1.0}) for n in (0, 1)], {})
    assert without.levels[0].fluency.perplexity is None
    assert "perplexity" not in summary({}, [without])


@pytest.mark.parametrize(
    ("fields", "base"),
    [({}, False), ({"baselines": ["unlabelled"]}, False), ({"baselines": ["prompted"]}, True), ({"perplexity": True}, True)],
)
def test_the_base_model_is_an_input_where_it_takes_part(fields, base):
    stage = find(stages(parse(with_field("spec.evaluate", fields), "m")), "evaluate")
    assert ("base" in stage.files, "hugging_face" in stage.credentials) == (base, base)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"baselines": ["prompted", "prompted"]}, "name each once"),
        ({"wording": {"quality": ["low", "high"]}}, r"evaluate\.wording\.quality: 2 sentences for 5 levels \(0 to 4\)"),
        ({"wording": {"qualty": ["low"]}}, r"evaluate\.wording: unknown attribute 'qualty'"),
        ({"bestOfBaselines": True, "baselines": ["prompted"]}, "bestOfBaselines: there is nothing to choose"),
        ({"bestOfBaselines": True, "bestOf": 4}, "bestOfBaselines: there is nothing to choose"),
    ],
)
def test_baselines_and_their_wording_must_fit(fields, said):
    with pytest.raises(UsageError, match=said):
        parse(with_field("spec.evaluate", fields), "m")


def test_choosing_the_step_by_control_reads_prompts_and_the_value_model():
    kept = (parse(with_field("spec.trainSteer.keep", keep), "m") for keep in ("best", "best-control"))
    by_loss, by_control = ({stage.name: stage for stage in stages(pipeline)} for pipeline in kept)
    assert set(by_loss["train-steer"].inputs) == {"annotate"}
    assert by_control["train-steer"].inputs == {
        **by_loss["train-steer"].inputs,
        "prepare": ("annotate_val.jsonl", "tokenizer"),
        "train-value": ("hf",),
    }
