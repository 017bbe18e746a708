"""The one line that a stage leaves for the operator."""

from __future__ import annotations

import json

import pytest

from nemo_steerlm.core.environment import TERMINATION_MESSAGE_LIMIT, parse_result_line, result_line


@pytest.mark.parametrize("cached", [True, False])
def test_a_result_is_read_back(cached):
    line = result_line(cached=cached, input_hash="abc", metrics={"loss": 1.5, "é": {"n": 2}})
    assert parse_result_line(line) == {"cached": cached, "inputHash": "abc", "metrics": {"loss": 1.5, "é": {"n": 2}}}
    assert "\n" not in line
    assert line.isascii()


def test_a_result_fits_the_pods_message_and_loses_the_last_metrics_first():
    metrics = {f"m{i}": "x" * 90 for i in range(100)}
    line = result_line(cached=False, input_hash="h", metrics=metrics)
    kept = parse_result_line(line)["metrics"]
    assert list(kept) == list(metrics)[: len(kept)]
    assert len(line) <= TERMINATION_MESSAGE_LIMIT == 4096 < len(json.dumps({"metrics": dict(list(metrics.items())[: len(kept) + 1])})) + 40
    assert len(metrics) == 100, "the caller's own are left alone"


def test_a_result_that_just_fits_is_whole():
    empty = len(result_line(cached=False, input_hash="h", metrics={"m": ""}))
    for more, fits in ((0, True), (1, False)):
        line = result_line(cached=False, input_hash="h", metrics={"m": "x" * (TERMINATION_MESSAGE_LIMIT - empty + more)})
        assert bool(parse_result_line(line)["metrics"]) is fits


def test_a_hash_that_is_too_long_is_still_a_result():
    assert parse_result_line(result_line(cached=False, input_hash="h" * 5000, metrics={"m": 1}))["metrics"] == {}


@pytest.mark.parametrize("text", ["", "Killed", "[1]", "{}", '{"inputHash": 3}', '"inputHash"', "null"])
def test_any_other_message_is_no_result(text):
    assert parse_result_line(text) == {}
