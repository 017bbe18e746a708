"""How long it will still take, by what has been seen so far."""

from __future__ import annotations

import pytest

from nemo_steerlm.cli.run import _ProgressLines
from nemo_steerlm.pipeline.manifest import parse
from nemo_steerlm.pipeline.stages import stages
from nemo_steerlm.pipeline.time_left import LEARN, READ, WRITE, TimeLeft, spoken
from tests.pipeline.manifests import with_field

SECTIONS = {
    "trainValue": {"maxSteps": 10, "globalBatchSize": 10, "microBatchSize": 1},
    "trainSteer": {"maxSteps": 20, "globalBatchSize": 10, "microBatchSize": 1},
    "evaluate": {"attributes": ["quality"], "samplesPerLevel": 10, "jointRequests": 0, "calibrationTurns": 20},
}
VALUE, STEER, EVALUATE = 100 * LEARN, 200 * LEARN, 50 * (WRITE + READ) + 20 * READ


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def left(clock):
    content = with_field("spec.trainValue", {})
    content["spec"] |= SECTIONS
    pipeline = parse(content, "m")
    return TimeLeft(pipeline.spec, stages(pipeline), clock)


def progress(done, total, **more):
    return {"steerlm": "progress", "done": done, "total": total, **more}


def test_nothing_is_known_at_first_and_nothing_is_claimed(left):
    left.started("prepare")
    assert (left.of_stage, left.of_pipeline) == (None, None)
    left.finished("prepare", 3.0, cached=False)
    assert left.of_pipeline is None


def test_a_stage_goes_on_as_fast_as_it_was_since_it_was_first_heard_of(left, clock):
    left.started("train-value")
    clock.now = 20  # it loads
    left.progressed(progress(2, 10))
    assert left.of_stage is None
    clock.now = 26
    left.progressed(progress(4, 10))
    assert left.of_stage == pytest.approx(18)


def test_a_phase_is_measured_by_itself(left, clock):
    left.started("evaluate")
    left.progressed(progress(0, 10, phase="answering"))
    clock.now = 100
    left.progressed(progress(10, 10, phase="answering"))
    assert left.of_stage == 0
    left.progressed(progress(1, 4, phase="pairs"))
    clock.now = 101
    left.progressed(progress(2, 4, phase="pairs"))
    assert left.of_stage == pytest.approx(2)


def test_what_the_trainer_says_itself_counts(left):
    left.started("train-value")
    left.progressed(progress(1, 10, seconds_left=77.5, loss=1.0))
    assert left.of_stage == 77.5


def test_stages_to_come_take_as_long_as_their_texts(left, clock):
    left.finished("prepare", 1.0, cached=False)
    left.started("train-value")
    left.progressed(progress(0, 10))
    clock.now = 30
    left.progressed(progress(5, 10))
    # Half of it took 30 s, so all of it takes 60 s.
    rate = 60 / VALUE
    assert left.of_pipeline == pytest.approx(30 + (STEER + EVALUATE) * rate)
    clock.now = 60
    left.finished("train-value", 60.0, cached=False)
    assert left.of_pipeline == pytest.approx((STEER + EVALUATE) * rate)
    left.started("annotate")
    left.progressed(progress(0, 40))
    assert left.of_pipeline == pytest.approx((40 * READ + STEER + EVALUATE) * rate)


def test_what_had_been_done_before_tells_nothing_of_this_machine(left):
    left.finished("train-value", 5000.0, cached=True)
    assert left.of_pipeline is None


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (100, "2 min"), (7100, "118 min"), (12_000, "3 h 20 min")])
def test_it_is_said_in_words(seconds, text):
    assert spoken(seconds) == text


def test_a_log_gets_a_line_while_a_stage_runs(left, clock, capsys):
    value = left._stages["train-value"]
    with _ProgressLines(left, interval=0.01) as lines:
        assert lines.line() is None
        lines.started(value)
        assert lines.line() == "train-value: starting"
        clock.now = 30
        lines.message(value, progress(5, 10, seconds_left=30, loss=2.5))
        line = lines.line()
        assert line.startswith("train-value: 5 of 10, loss 2.500; 30 s left; about ")
        assert line.endswith(" for the whole pipeline")
        said = ""
        while line not in said:  # of itself, without a message
            said += capsys.readouterr().out
        lines.finished(value, 60.0, cached=False)
        assert lines.line() is None
    assert "train-value: done in 60.0 s" in capsys.readouterr().out
