"""Figures of the report, checked on cases whose answer is known."""

from __future__ import annotations

import pytest

from nemo_steerlm.core.attributes import Attribute, AttributeSchema
from nemo_steerlm.data.records import write_records
from nemo_steerlm.evaluation.metrics import RatedText, Sample, check_value_model, judge, spread, steering, summary
from nemo_steerlm.evaluation.report.page import Report, write_page
from nemo_steerlm.pipeline.steps.evaluate import rated_turns

SCHEMA = AttributeSchema(attributes=(Attribute(name="verbosity"),))


def samples(read, judged):
    return [
        Sample(attribute="verbosity", level=level, prompt="p", answer="a", read={"verbosity": read(level)}, judged=judged(level))
        for level in range(5)
        for _ in range(3)
    ]


def test_ridge_beats_the_commonest_value_where_words_tell():
    texts = ["bad " * (n % 5) + "film" for n in range(60)]
    rated = [RatedText(text=t, values={"verbosity": t.count("bad")}) for t in texts]
    check = check_value_model(rated[:40], rated[40:], [t.values for t in rated[40:]], SCHEMA)["verbosity"]
    assert check.model.mae == 0
    assert check.ridge.mae < check.majority.mae


def test_what_the_value_model_was_taught_does_not_check_it(tmp_path):
    """A turn is told by its text and by what stands before it; a person's own turns are rated by nobody."""

    def write(name, *conversations, **labels):
        turns = [[{"value": text, "from": ("User", "Assistant")[i % 2], **labels} for i, text in enumerate(c)] for c in conversations]
        write_records(tmp_path / name, ({"conversations": t, "system": "", "mask": "User"} for t in turns))
        return tmp_path / name

    teaching = write("teaching", ("Q", "A", "R", "B"), label="verbosity:1")
    read = {"label": "verbosity:2"}
    labelled = write("labelled", ("Q", "A", "R", "other"), ("Q", "other", "R", "B"), ("R", "A"), gt_label="verbosity:3", **read)
    unrated = write("unrated", ("Q", "unrated"), **read)
    taught, held_out, predicted = rated_turns(teaching, [labelled, unrated], SCHEMA)
    assert [t.text for t in taught] == ["A", "B"]
    assert [t.text for t in held_out] == ["other", "other", "B", "A"]
    assert {t.values["verbosity"] for t in held_out} == {3}
    assert predicted == [{"verbosity": 2}] * 4


def test_a_model_that_obeys_has_perfect_rank_correlation_and_one_that_does_the_opposite_has_minus_one():
    obeys = steering(samples(float, lambda level: 10.0 * level), {"verbosity": "words"})[0]
    assert (obeys.spearman_read, obeys.spearman_judged) == (pytest.approx(1), pytest.approx(1))
    opposite = steering(samples(lambda level: 4.0 - level, lambda _: None), {})[0]
    assert opposite.spearman_read == pytest.approx(-1)
    assert opposite.spearman_judged is None


def test_judges():
    assert judge("words")("two words") == 2
    assert judge("characters")("four") == 4
    assert judge("vader")("I love this wonderful film!") > 0.5 > judge("vader")("I hate this awful film.")


def test_spread_uses_every_prompt_equally_and_depends_on_the_seed_only():
    chosen = spread(["a", "b", "c"], 9, seed=1)
    assert sorted(chosen) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert chosen == spread(["a", "b", "c"], 9, seed=1)


def test_the_page_is_whole_and_people_cannot_write_markup_into_it(tmp_path):
    wicked = [Sample(attribute="verbosity", level=n, prompt="<b>p", answer="<script>", read={"verbosity": n}) for n in range(5)]
    table = steering(wicked, {})
    report = Report(
        name="n", checks={}, steering=table, samples=wicked, losses={"t": [2.0, 1.0]}, stages=[], versions={}, manifest="a: <b>"
    )
    write_page(tmp_path / "report.html", report)
    page = (tmp_path / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "verbosity (1 answers a level)" in summary({}, table)
