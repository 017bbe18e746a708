"""Whole lifetimes of a pipeline under any order of events: stale caches, crashes between any two writes, failures, people."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.operator.lifetime import Lifetime

Lifetime.TestCase.settings = settings(
    # Shrinking a lifetime takes longer than reading it.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    max_examples=40,
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestLifetime = Lifetime.TestCase


def test_what_a_deleted_rank_does_to_the_others_counts_no_failure():
    life = Lifetime()
    life.begin(shards=1, rounds=0, nodes=2, done=1)
    life.settle()
    life.somebody_deletes_a_rank()
    life.settle()
    (training,) = [stage for stage in life.status()["stages"] if stage["name"] == "train-value"]
    assert (training["phase"], training["reason"], training["countedFailures"]) == ("Retrying", "Disrupted", 0)
    life.reach_the_end()


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "suspended before"])
@pytest.mark.parametrize("end", ["Succeeded", "Failed"])
def test_what_is_restarted_while_suspended_waits_until_it_is_resumed(end, at_once):
    life = Lifetime()
    life.begin(shards=1, rounds=0, nodes=1, done=1)
    life.settle()
    if end == "Failed":
        life.fail_job(*life.world.jobs(), "exit 65")
        life.settle()
    else:
        life.reach_the_end()
    assert life.status()["phase"] == end
    life.edit(suspend=True)
    if not at_once:
        life.settle()
        assert life.status()["phase"] == end
    life.ask_to_restart("annotate" if end == "Succeeded" else None)
    life.settle()
    assert life.status()["phase"] == "Suspended"
    assert not life.world.jobs()
    life.reach_the_end()


def test_a_restart_from_a_stage_behind_the_failed_one_tries_that_one_again_first():
    life = Lifetime()
    life.begin(shards=1, rounds=0, nodes=1, done=1)
    life.settle()
    life.fail_job(*life.world.jobs(), "exit 65")
    life.settle()
    life.ask_to_restart("evaluate")
    life.settle()
    stages = {stage["name"]: stage for stage in life.status()["stages"]}
    assert (stages["prepare"]["phase"], stages["prepare"]["attempt"]) == ("Succeeded", 1)
    training = stages["train-value"]
    assert (training["phase"], training["attempt"], training["countedFailures"]) == ("Queued", 2, 0)
    life.reach_the_end()
