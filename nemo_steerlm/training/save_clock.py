"""When a checkpoint is due by the clock, and how long a training needs after SIGTERM: the rest of a step or validation, then a save."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


class SaveClock:
    """Measures one training on one rank."""

    def __init__(self, minutes: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        """``minutes`` between two checkpoints at most; None where steps alone decide."""
        self._limit = None if minutes is None else 60 * minutes
        self._clock = clock
        self._saved = clock()
        self._asked: float | None = None
        self._longest_wait = self._longest_save = 0.0

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is older than it may be."""
        return self._limit is not None and self._clock() - self._saved >= self._limit

    @property
    def stop_seconds(self) -> float | None:
        """The longest time seen between two moments at which the training could have stopped, and the longest save; None before one."""
        return self._longest_wait + self._longest_save if self._longest_save else None

    def ask(self) -> None:
        """The ranks agree at this moment whether to stop. What comes before the first such moment is slow only once."""
        now = self._clock()
        if self._asked is not None:
            self._longest_wait = max(self._longest_wait, now - self._asked)
        self._asked = now

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Measure the save in the block."""
        began = self._clock()
        yield
        self._saved = self._clock()
        took = self._saved - began
        self._longest_save = max(self._longest_save, took)
        if self._asked is not None:
            self._asked += took  # it counts once
