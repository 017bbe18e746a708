"""How often a stage is tried again: forgiven what it has got beyond, given up when it gets nowhere."""

import datetime

import pytest
from steerlm_operator.progress import describe_progress

from tests.operator.lifetime import Lifetime
from tests.operator.world import NAME


class Training(Lifetime):
    """Whose first stage is done, or not, and whose next one is disrupted, or fails, as a test says."""

    def __init__(self, done=1, **policy):
        super().__init__()
        self.begin(shards=1, rounds=0, nodes=1, done=done)
        self.edit(runPolicy={"backoffLimit": 1, **policy})
        self.settle()

    @property
    def entry(self):
        return {stage["name"]: stage for stage in self.status()["stages"]}[self.status()["currentStage"]]

    def condition(self, kind):
        return {c["type"]: c for c in self.status()["conditions"]}.get(kind, {})

    def run_until(self, how, **said):
        """An attempt whose pod says something and then ends; returns how long the next one is waited for, in seconds."""
        (job,) = self.world.jobs()
        self.world.start_pods(job)
        (pod,) = [name for name in self.world.pods if name.startswith(job["metadata"]["name"])]
        self.settle()
        if said:
            self.controller._memory[NAME].progress = {pod: {"steerlm": "progress", "total": 9, **said}}
            self.settle()
        self.fail_job(job, how)
        self.settle()
        if self.entry["phase"] != "Retrying":
            return None
        due = datetime.datetime.fromisoformat(self.entry["nextAttemptTime"].replace("Z", "+00:00"))
        waited = (due - self.world.now).total_seconds()
        self.world.now = due
        self.settle()
        return waited


@pytest.fixture
def training():
    made = []

    def make(**policy):
        made.append(Training(**policy))
        return made[-1]

    yield make
    for each in made:
        each.loop.close()


def test_disruptions_without_progress_are_retried_ever_more_rarely_and_not_forever(training):
    life = training(disruptionLimit=4)
    waits = [life.run_until("disrupted") for _ in range(5)]
    assert waits == [1, 2, 4, 8, None]  # retrySeconds is 1 here
    assert life.status()["phase"] == "Failed"
    assert life.condition("Failed")["reason"] == "NoProgress"
    assert "no progress in any attempt: 5 disruptions in a row" in life.condition("Failed")["message"]
    assert life.entry["countedFailures"] == 0
    life.ask_to_restart(None)
    life.settle()
    assert (life.entry["disruptions"], life.entry["phase"]) == (0, "Queued")


def test_a_stage_that_gets_nowhere_says_since_when_and_stops_saying_so_when_it_does(training):
    life = training()
    life.run_until("disrupted", done=3, saved=2)
    for _ in range(2):
        life.run_until("disrupted", done=4, saved=2)
        assert life.condition("Advancing") == {} or life.entry["disruptions"] > 2
    life.run_until("disrupted")
    found = life.condition("Advancing")
    assert (found["status"], found["reason"]) == ("False", "NoProgress")
    assert "no progress since attempt 1, attempt 4 was the last one" in found["message"]
    assert life.run_until("disrupted", done=5, saved=3) == 1  # as after the first one
    assert life.condition("Advancing") == {}
    assert (life.entry["furthest"], life.entry["progressAttempt"], life.entry["disruptions"]) == (3, 5, 1)


def test_a_counted_failure_is_forgiven_once_the_stage_has_got_further(training):
    life = training(backoffLimit=1)
    for saved in (2, 4, 6):
        life.run_until("exit 1", done=9, saved=saved)
        assert life.entry["countedFailures"] == 1
    life.run_until("exit 1", done=9, saved=6)
    assert (life.entry["countedFailures"], life.status()["phase"]) == (2, "Failed")
    assert life.condition("Failed")["reason"] == "StageError"


def test_a_stage_that_says_nothing_of_saving_gets_as_far_as_it_has_done(training):
    life = training(done=0, backoffLimit=1)
    for done in (2, 3):
        life.run_until("exit 1", done=done)
        assert life.entry["countedFailures"] == 1
    life.run_until("exit 1", done=3)
    assert life.status()["phase"] == "Failed"


def test_a_training_that_says_nothing_new_is_ended_as_a_disruption(training):
    life = training(stallSeconds=600)
    (job,) = life.world.jobs()
    life.world.start_pods(job)
    life.settle()
    (pod,) = [name for name in life.world.pods if name.startswith(job["metadata"]["name"])]

    def wait(seconds, **said):
        life.world.now += datetime.timedelta(seconds=seconds)
        if said:
            life.controller._memory[NAME].progress = {pod: {"steerlm": "progress", "total": 9, **said}}
        life.settle()
        return life.entry["phase"]

    assert wait(599) == "Running"
    assert wait(0, done=1) == "Running"
    assert wait(599) == "Running"
    assert wait(1) == "Retrying"
    assert (life.entry["reason"], life.entry["countedFailures"], life.entry["disruptions"]) == ("NoProgress", 0, 1)
    assert "no progress within 600 s after 1/9" in life.entry["message"]
    assert not life.world.jobs()
    life.reach_the_end()


def test_what_is_there_for_the_operator_is_not_shown_to_people():
    said = {"steerlm": "progress", "stage": "s", "done": 3, "total": 9, "loss": 1.5, "saved": 2, "stop_seconds": 1.0}
    assert describe_progress(said) == "3/9 loss 1.5"
