"""The value model's figures, and which turns they are computed from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from nemo_steerlm.core.attributes import Attribute, AttributeSchema
from nemo_steerlm.data.records import write_records
from nemo_steerlm.evaluation.agreement import agreement_of
from nemo_steerlm.evaluation.calibration import calibration
from nemo_steerlm.evaluation.rated_turns import RatedTurn, rated_turns
from nemo_steerlm.evaluation.value_model import check_value_model

SCHEMA = AttributeSchema(attributes=(Attribute(name="verbosity"),))


def test_ridge_beats_the_commonest_value_where_words_tell():
    texts = ["bad " * (n % 5) + "film" for n in range(60)]
    rated = [RatedTurn(text=t, values={"verbosity": t.count("bad")}) for t in texts]
    check = check_value_model(rated[:40], rated[40:], [t.values for t in rated[40:]], SCHEMA)["verbosity"]
    assert check.model.mae == 0
    assert check.ridge.mae < check.majority.mae
    assert check.expected is None


def rated(*pairs):
    return [RatedTurn(text=text, values={"verbosity": value}) for text, value in pairs]


def test_baselines_know_only_what_was_taught():
    """Nearly all lessons are 1, nearly all held-out turns 3."""
    taught, held_out = rated(*[("a film", 1)] * 9, ("a film", 3)), rated(*[("a film", 3)] * 9, ("a film", 1))
    check = check_value_model(taught, held_out, [t.values for t in held_out], SCHEMA)["verbosity"]
    assert check.majority.mae == pytest.approx(9 * 2 / 10)
    assert check.ridge.mae == pytest.approx(0.9 * (3 - 1.2) + 0.1 * 0.2)  # their mean is 1.2


@pytest.mark.parametrize("most", [0, 4])
def test_a_guess_beyond_the_scale_is_its_end(most):
    """Length tells the value, and the held-out text is longer than any that was taught."""
    taught = rated(*[("word " * n, abs(4 - most - n // 8)) for n in range(1, 40)])
    check = check_value_model(taught, rated(("word " * 10_000, most)), [{"verbosity": most}], SCHEMA)["verbosity"]
    assert check.ridge.mae == 0


def test_the_expected_value_stands_beside_the_likeliest():
    """Two turns of value 2 whose likeliest value is 1, by a hair: the expected value is nearly right."""
    rated = [RatedTurn(text="a", values={"verbosity": 2})] * 2
    chances = {i: {"verbosity": [0.0, 0.49, 0.08, 0.0, 0.43]} for i in range(2)}
    check = check_value_model(rated, rated, [{"verbosity": 1}] * 2, SCHEMA, chances)["verbosity"]
    assert check.model.mae == 1
    assert check.expected.mae == pytest.approx(0.49 + 0.16 + 1.72 - 2)
    assert check.calibration.count == 2


def test_calibration_in_closed_form():
    """Ten predictions at 0.9 of which eight are right, and ten at 0.6 that are all right."""
    truth = [0] * 8 + [1] * 2 + [1] * 10
    chances = [[0.9, 0.1]] * 10 + [[0.4, 0.6]] * 10
    found = calibration(truth, chances)
    assert found.ece == pytest.approx((0.1 * 10 + 0.4 * 10) / 20)
    assert found.brier == pytest.approx((8 * 2 * 0.01 + 2 * 2 * 0.81 + 10 * 2 * 0.16) / 20)
    assert found.rps == pytest.approx((8 * 0.01 + 2 * 0.81 + 10 * 0.16) / 20)
    assert [(b.count, b.confidence, b.accuracy) for b in found.bins] == [(10, pytest.approx(0.6), 1), (10, pytest.approx(0.9), 0.8)]


@given(st.lists(st.tuples(st.integers(1, 3), st.lists(st.floats(0.01, 1), min_size=3, max_size=3)), min_size=1, max_size=20))
def test_nll_is_that_of_a_library(rows):
    truth = [t for t, _ in rows]
    chances = np.array([p for _, p in rows])
    chances /= chances.sum(axis=1, keepdims=True)
    assert calibration(truth, chances, low=1).nll == pytest.approx(log_loss(truth, chances, labels=[1, 2, 3]))


def test_a_near_miss_costs_less_than_a_far_one():
    near, far = ([[0.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 1.0]])
    assert calibration([0], near).rps == pytest.approx(1 / 3)
    assert calibration([0], far).rps == pytest.approx(1)
    assert calibration([0], near).brier == calibration([0], far).brier == 2


def write(path, *conversations, **labels):
    turns = [[{"value": text, "from": ("User", "Assistant")[i % 2], **labels} for i, text in enumerate(c)] for c in conversations]
    write_records(path, ({"conversations": t, "system": "", "mask": "User"} for t in turns))
    return path


def test_what_the_value_model_was_taught_does_not_check_it(tmp_path):
    """A turn is told by its text and by what stands before it; a person's own turns are rated by nobody."""
    teaching = write(tmp_path / "teaching", ("Q", "A", "R", "B"), label="verbosity:1")
    read = {"label": "verbosity:2"}
    labelled = write(tmp_path / "labelled", ("Q", "A", "R", "other"), ("Q", "other", "R", "B"), ("R", "A"), gt_label="verbosity:3", **read)
    unrated = write(tmp_path / "unrated", ("Q", "unrated"), **read)
    turns = rated_turns(teaching, [labelled, unrated], SCHEMA)
    assert [t.text for t in turns.taught] == ["A", "B"]
    assert [t.text for t in turns.held_out] == ["other", "other", "B", "A"]
    assert {t.values["verbosity"] for t in turns.held_out} == {3}
    assert turns.predicted == [{"verbosity": 2}] * 4
    assert [tuple(t.text for t in c.turns) for c in turns.conversations][2] == ("Q", "other", "R", "B")
    assert {t.label for c in turns.conversations for t in c.turns} == {None}


def test_a_turn_that_branches_share_is_counted_once(tmp_path):
    branches = (("Q", "A", "R", "B"), ("Q", "A", "R", "C"), ("Q", "A", "S", "B"))
    labelled = write(tmp_path / "labelled", *branches, gt_label="verbosity:3", label="verbosity:2", label_source="value")
    teaching = write(tmp_path / "teaching", ("Z", "Z"), ("Q", "T"), ("Q", "T"), label="verbosity:1")
    turns = rated_turns(teaching, [labelled], SCHEMA)
    assert [t.text for t in turns.held_out] == ["A", "B", "C", "B"]
    assert [t.text for t in turns.taught] == ["Z", "T"]
    # Q, A, R, B, C, S and the B after S: the annotator's agreement counts a person's turns as well.
    assert agreement_of(labelled, SCHEMA)["verbosity"]["turns"] == 7
