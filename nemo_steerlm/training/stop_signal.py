"""SIGTERM as a flag: a training ends between two steps, with a checkpoint."""

from __future__ import annotations

import signal
from types import FrameType


class StopSignal:
    """Remembers, while it is entered, that SIGTERM came; the loop asks between steps."""

    def __init__(self) -> None:
        self.came = False

    def __enter__(self) -> StopSignal:
        self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_error: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.came = True
