"""Figures of the report, checked on cases whose answer is known."""

from __future__ import annotations

import pytest

from nemo_steerlm.core.attributes import Attribute, AttributeSchema
from nemo_steerlm.pipeline.evaluation import RatedText, Sample, check_value_model, judge, spread, steering, summary
from nemo_steerlm.pipeline.report.page import Report, write_page

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
