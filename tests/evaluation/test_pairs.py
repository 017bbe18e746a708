"""Accuracy on pairs of answers, from a file."""

from __future__ import annotations

import json

import pytest

from nemo_steerlm.core.errors import DataError, UsageError
from nemo_steerlm.evaluation.pairs import pair_figures
from nemo_steerlm.evaluation.summary import summary
from nemo_steerlm.pipeline.manifest import parse
from nemo_steerlm.pipeline.steps.preference_pairs import read_pairs
from tests.pipeline.manifests import with_field

WEIGHTS = {"helpfulness": 1.0, "verbosity": -0.5}


def read(helpfulness, verbosity=0.0):
    return {"helpfulness": helpfulness, "verbosity": verbosity}


def test_the_larger_weighted_sum_is_the_preferred_answer_and_a_tie_is_half():
    chosen = [read(3), read(2, 4), read(2), read(1, 2)]
    rejected = [read(1), read(2, 0), read(3), read(0)]
    found = pair_figures(["a", "b", "c", "d"], chosen, rejected, WEIGHTS)
    assert (found.count, found.accuracy.value) == (4, (1 + 0 + 0 + 0.5) / 4)
    assert found.accuracy.low < found.accuracy.value < found.accuracy.high
    said = summary({}, [], pairs=found).splitlines()[-1]
    assert said.startswith("Preferred answers read higher in 0.38 [")
    assert said.endswith("of 4 pairs (+1 helpfulness -0.5 verbosity)")


def write(path, *records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def test_pairs_are_texts_or_messages(tmp_path):
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Q"}]
    path = write(
        tmp_path / "p.jsonl",
        {"prompt": "Q", "chosen": "A", "rejected": "B", "subset": "chat"},
        {"prompt": messages, "chosen": [{"role": "assistant", "content": "A"}], "rejected": "B"},
    )
    (first, _), (second, other) = read_pairs(path, "S")
    assert [t.text for t in first.turns] == ["Q", "A"]
    assert (first.system, second.system) == ("S", "Be kind.")
    assert [(t.speaker, t.text) for t in other.turns] == [("User", "Q"), ("Assistant", "B")]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt": "Q", "chosen": "A"}, "missing key 'rejected'"),
        ({"prompt": "Q", "chosen": "A", "rejected": 3}, "rejected is 3"),
        ({"prompt": [{"role": "tool", "content": "x"}], "chosen": "A", "rejected": "B"}, r"prompt\[0\]: message is"),
        ({"prompt": [{"role": "assistant", "content": "x"}], "chosen": "A", "rejected": "B"}, "no question and answer"),
    ],
)
def test_what_is_no_pair_is_named_with_its_line(tmp_path, record, said):
    path = write(tmp_path / "p.jsonl", {"prompt": "Q", "chosen": "A", "rejected": "B"}, record)
    with pytest.raises(DataError, match=rf"p.jsonl:2.*{said}"):
        read_pairs(path, "S")


def test_weights_are_of_attributes_that_exist():
    with pytest.raises(UsageError, match=r"evaluate\.pairs\.weights: unknown attribute 'qualty'"):
        parse(with_field("spec.evaluate.pairs", {"path": "p.jsonl", "weights": {"qualty": 1.0}}), "m")
