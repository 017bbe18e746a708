"""How often labels were taught, and what was taught nearest to one that was not."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_steerlm.core import label_support
from nemo_steerlm.core.attributes import Attribute, AttributeSchema
from nemo_steerlm.core.errors import DataError
from nemo_steerlm.core.label_support import LabelSupport, TaughtLabels

SCHEMA = AttributeSchema(attributes=(Attribute(name="a"), Attribute(name="b", low=-1, high=3)), languages=("en", "de"))
LABELS = ["a:4,b:0,lang:en", "a:4,b:0,lang:de", "a:1,b:3", "a:0"]


def taught(labels):
    return TaughtLabels(SCHEMA, LabelSupport.count(SCHEMA, labels))


def test_values_and_combinations_are_counted_languages_aside():
    found = LabelSupport.count(SCHEMA, LABELS)
    assert found.labels == 4
    assert found.values == {"a": [1, 1, 0, 0, 2], "b": [0, 2, 0, 0, 1]}
    assert found.combinations == {"a:4,b:0": 2, "a:1,b:3": 1, "a:0": 1}
    assert taught(LABELS).count({"a": 4, "b": 0}) == 2
    assert taught(LABELS).count({"a": 4, "b": 1}) == 0
    assert taught(LABELS).count({"b": 0}) == 2
    assert taught(LABELS).count({}) == 4


def test_the_nearest_is_the_one_with_the_fewest_steps_and_of_several_the_most_frequent():
    found = taught([*LABELS, "a:4,b:3"])
    assert found.nearest({"a": 3, "b": 1}) == {"a": 4, "b": 0}
    assert found.nearest({"a": 4, "b": 2}) == {"a": 4, "b": 3}
    assert taught(["a:1,b:1", "a:3,b:1", "a:3,b:1"]).nearest({"a": 2, "b": 1}) == {"a": 3, "b": 1}
    assert taught([]).nearest({"a": 1}) == {}
    assert taught([]).count({"a": 1}) == 0


def test_rare_combinations_are_left_out_and_that_is_said(monkeypatch):
    monkeypatch.setattr(label_support, "MOST_COMBINATIONS", 1)
    found = LabelSupport.count(SCHEMA, LABELS)
    assert (found.combinations, found.left_out, found.labels) == ({"a:4,b:0": 2}, 2, 4)


LEVELS = st.integers(0, 3)


@given(st.lists(st.tuples(LEVELS, LEVELS), min_size=1, max_size=30), LEVELS, LEVELS)
def test_nothing_taught_is_nearer_than_the_nearest(pairs, a, b):
    labels = [f"a:{x},b:{y}" for x, y in pairs]
    nearest = taught(labels).nearest({"a": a, "b": b})
    distance = abs(nearest["a"] - a) + abs(nearest["b"] - b)
    assert distance == min(abs(x - a) + abs(y - b) for x, y in pairs)
    assert (distance == 0) == (taught(labels).count({"a": a, "b": b}) > 0)
    support = LabelSupport.count(SCHEMA, labels, unlabelled=3, partial=True)
    assert msgspec.json.decode(msgspec.json.encode(support), type=LabelSupport) == support


def test_what_two_trainings_taught_adds_up():
    first, second = LabelSupport.count(SCHEMA, LABELS, unlabelled=2), LabelSupport.count(SCHEMA, ["a:1,b:3", "b:1"], partial=True)
    assert first + second == LabelSupport.count(SCHEMA, [*LABELS, "a:1,b:3", "b:1"], unlabelled=2, partial=True)


def test_another_schemas_label_is_refused():
    with pytest.raises(DataError):
        LabelSupport.count(SCHEMA, ["c:1"])
