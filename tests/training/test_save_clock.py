"""When a checkpoint is due, and how long an end takes: on a clock that the test moves."""

from nemo_steerlm.training.save_clock import SaveClock


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_checkpoint_is_due_when_the_last_one_is_old_enough() -> None:
    clock = Clock()
    saves = SaveClock(10, clock)
    clock.now = 599
    assert not saves.due
    clock.now = 600
    assert saves.due
    with saves.saving():
        clock.now = 700
    assert not saves.due
    clock.now = 1300
    assert saves.due
    assert not SaveClock(None, clock).due


def test_an_end_takes_the_longest_wait_and_the_longest_save() -> None:
    clock = Clock()
    saves = SaveClock(None, clock)
    clock.now = 1000  # loading and the first step
    saves.ask()
    assert saves.stop_seconds is None
    clock.now = 1005
    saves.ask()
    clock.now = 1012  # a validation, then a save, then the next step
    with saves.saving():
        clock.now = 1112
    clock.now = 1115
    saves.ask()
    assert saves.stop_seconds == (7 + 3) + 100
    with saves.saving():
        clock.now += 20
    assert saves.stop_seconds == 110
