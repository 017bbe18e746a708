"""Figures of control, on answers whose figures are known in closed form."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from nemo_steerlm.evaluation.control import auc, control, cross_talk, difference, joint, slope
from nemo_steerlm.evaluation.fluency import fluency
from nemo_steerlm.evaluation.intervals import Resamples
from nemo_steerlm.evaluation.samples import Sample, spread
from tests.evaluation.answers import ANSWERS, answers, failing, steering


def plain(read, judged=lambda _: None, count=3, attribute="verbosity"):
    return [
        Sample(attribute=attribute, level=level, prompt="p", answer=f"a {n}", read=read(level), judged=judged(level))
        for level in range(5)
        for n in range(count)
    ]


def test_a_model_that_obeys_and_one_that_does_the_opposite():
    obeys = control(plain(lambda n: {"verbosity": float(n)}, lambda n: 10.0 * n), {"verbosity": "words"})[0]
    assert (obeys.error.value, obeys.hit_rate, obeys.slope, obeys.range) == (0, 1, pytest.approx(1), 4)
    assert obeys.rank_read.value == pytest.approx(1)
    assert obeys.rank_judged.value == pytest.approx(1)
    assert [pair.read.value for pair in obeys.neighbours] == [1, 1, 1, 1]
    assert not obeys.alike
    opposite = control(plain(lambda n: {"verbosity": 4.0 - n}), {})[0]
    assert opposite.error.value == pytest.approx((4 + 2 + 0 + 2 + 4) / 5)
    assert (opposite.hit_rate, opposite.slope, opposite.range) == (pytest.approx(0.2), pytest.approx(-1), -4)
    assert opposite.rank_read.value == pytest.approx(-1)
    assert [pair.read.value for pair in opposite.neighbours] == [0, 0, 0, 0]
    assert opposite.rank_judged is None


def test_the_run_whose_headline_was_090_and_which_did_not_steer():
    found = control(failing(), {"positivity": "vader"})[0]
    assert found.spearman_read == pytest.approx(0.9)
    assert found.error.value == pytest.approx(1.01, abs=0.06)
    assert found.hit_rate == pytest.approx(0.33, abs=0.04)
    assert found.slope == pytest.approx(0.49, abs=0.02)
    assert found.rank_read.value == pytest.approx(0.54, abs=0.06)
    assert [pair.judged.value for pair in found.neighbours] == pytest.approx([0.92, 0.47, 0.60, 0.52], abs=0.015)
    assert [(pair.lower, pair.upper) for pair in found.alike] == [(1, 2), (2, 3), (3, 4)]
    assert (found.worst_neighbours.lower, found.worst_neighbours.upper) == (1, 2)


def test_auc_of_two_normal_levels_is_that_of_their_distance():
    shift, noise = 0.86, 0.433
    quantiles = np.array([NormalDist().inv_cdf((i + 0.5) / 400) for i in range(400)])
    assert auc(noise * quantiles, shift + noise * quantiles) == pytest.approx(NormalDist().cdf(shift / noise / 2**0.5), abs=2e-3)


VALUES = st.lists(st.integers(0, 4), min_size=1, max_size=20)


@given(VALUES, VALUES)
def test_auc_equals_that_of_a_library_ties_included(lower, upper):
    truth = [0] * len(lower) + [1] * len(upper)
    assert auc(lower, upper) == pytest.approx(roc_auc_score(truth, lower + upper))
    twice = (np.full(len(lower), 2.0), np.arange(1.0, len(upper) + 1))
    assert auc(lower, upper, twice) == pytest.approx(roc_auc_score(truth, lower + upper, sample_weight=np.concatenate(twice)))


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-5, 5)), min_size=2, max_size=40))
def test_slope_is_that_of_least_squares(pairs):
    asked, read = zip(*pairs, strict=True)
    if len(set(asked)) == 1:
        assert slope(asked, read) is None
    else:
        assert slope(asked, read) == pytest.approx(np.polyfit(asked, read, 1)[0], abs=1e-6)


def test_cross_talk_is_the_slope_of_what_was_not_asked():
    table = control(answers((0, 1, 2, 3, 4), (0, 1, 2, 3, 4), other=-0.25), {})
    assert table[0].cross_talk == {"verbosity": pytest.approx(-0.25)}
    assert cross_talk(table) == {"positivity": {"positivity": pytest.approx(1), "verbosity": pytest.approx(-0.25)}}


def test_answers_to_one_prompt_count_together():
    """Ten prompts that shift every answer to them: drawn over prompts the interval is wide, as if answers were alone it would be narrow."""
    shifts = [n / 3 for n in range(10)]
    shifted = [
        Sample(attribute="a", level=level, prompt=str(p), answer="", read={"a": level + shifts[p]})
        for level in range(5)
        for p in range(10)
        for _ in range(20)
    ]
    error = control(shifted, {})[0].error
    assert error.value == pytest.approx(np.mean(shifts))
    expected = 2 * 1.96 * np.std(shifts) / len(shifts) ** 0.5
    assert error.high - error.low == pytest.approx(expected, rel=0.15)


def test_an_interval_of_few_prompts_is_over_answers_and_covers():
    numbers = np.random.default_rng(5)
    inside = 0
    for trial in range(60):
        values = numbers.normal(size=64)
        found = Resamples(["p"] * 64, [0] * 64, trial).interval(lambda w, v=values: float((w * v).sum() / w.sum()))
        inside += found.low <= 0 <= found.high
    assert 50 <= inside <= 60


def test_a_figure_that_is_not_defined_has_no_interval():
    found = control(plain(lambda _: {"verbosity": 2.0}), {})[0]
    assert (found.rank_read.value, found.rank_read.low) == (None, None)
    assert len(found.alike) == 4
    assert Resamples([], []).interval(lambda w: float(w.sum())).value is None


def test_the_gain_of_a_model_over_another_is_paired():
    before = answers((0.0, 1.0, 2.0, 3.0, 4.0), (0,) * 5, prompts=16)
    worse = answers((0.5, 1.5, 2.5, 3.5, 4.5), (0,) * 5, noise=(0, 0), prompts=16)
    better = answers((0.2, 1.2, 2.2, 3.2, 4.2), (0,) * 5, noise=(0, 0), prompts=16)
    gain = difference(worse, better, "positivity")
    assert gain.value == pytest.approx(-0.3)
    assert (gain.low, gain.high) == (pytest.approx(-0.3), pytest.approx(-0.3))
    assert difference(before, before, "positivity").value == 0


def test_joint_requests_are_told_by_how_often_they_were_taught():
    asked = [{"a": 0, "b": 4}, {"a": 4, "b": 4}, {"a": 2, "b": 2}]
    made = [Sample(attribute="", level=0, prompt="p", answer="", asked=values, read={"a": 1.0, "b": 4.0}) for values in asked]
    labels = dict(enumerate(("a:0,b:4", "a:4,b:4", "a:2,b:2")))
    found = joint(made, {"a:4,b:4": 9, "a:2,b:2": 10}, labels)
    assert [(j.taught, j.count, j.error.value) for j in found] == [
        ("never", 1, 0.5),
        ("1 to 9 times", 1, 1.5),
        ("10 times or more", 1, 1.5),
    ]


def test_the_error_of_a_mean_is_that_of_a_sample():
    made = [
        Sample(attribute="verbosity", level=level, prompt="p", answer="a", read={"verbosity": 0.0}, judged=judged)
        for level in (0, 1)
        for judged in (1.0, 2.0, 3.0)
    ]
    for level in control(made, {"verbosity": "words"})[0].levels:
        assert (level.judged, level.judged_error) == (2, pytest.approx(3**-0.5))


def test_fluency():
    found = fluency(["a b c", "a b", "A b", "a b"], ["stop", "length", "stop", "stop"], training={"a b"})
    assert found.distinct_2 == pytest.approx(2 / 5)
    assert found.duplicates == pytest.approx(2 / 4)
    assert found.cut == pytest.approx(1 / 4)
    assert found.words == pytest.approx(9 / 4)
    assert found.copied == pytest.approx(2 / 4)
    assert fluency(["one"], ["stop"]).distinct_2 is None


def test_spread_uses_every_prompt_equally_and_depends_on_the_seed_only():
    chosen = spread(["a", "b", "c"], 9, seed=1)
    assert sorted(chosen) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert chosen == spread([1, 2, 3], 9, seed=1)
    assert sorted(spread(range(9), 9, seed=2)) == list(range(9))
    assert spread(range(9), 9, seed=2) != spread(range(9), 9, seed=1)


def test_rank_correlation_is_over_single_answers():
    made = steering()
    found = control(made, {"positivity": "vader"})[0]
    assert found.rank_judged.value == pytest.approx(spearmanr([s.level for s in made], [s.judged for s in made]).statistic)
    assert found.rank_judged.low < found.rank_judged.value < found.rank_judged.high
    assert found.levels[0].count == ANSWERS
