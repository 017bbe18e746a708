"""Which pipelines are to be looked at, and when: each at most once in the queue, and by one worker at a time."""

from __future__ import annotations

import asyncio
import time

from steerlm_operator import metrics

NamespacedName = tuple[str, str]
"""Namespace and name of a pipeline."""

BUSY_SECONDS = 0.2
"""A pipeline that a worker has already is tried again after so long."""


class WorkQueue:
    """Names of pipelines, first in, first out. Adding one that waits is adding it once."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[NamespacedName] = asyncio.Queue()
        self._waiting: dict[NamespacedName, float] = {}
        self._busy: dict[NamespacedName, float] = {}
        self._timers: dict[NamespacedName, asyncio.TimerHandle] = {}

    def add(self, name: NamespacedName) -> None:
        """Look at a pipeline soon. While a worker looks at it, this asks for another look."""
        if name not in self._waiting:
            self._waiting[name] = time.monotonic()
            metrics.QUEUE_LENGTH.set(len(self._waiting))
            self._queue.put_nowait(name)

    def add_after(self, name: NamespacedName, seconds: float) -> None:
        """Look at a pipeline after so long at the latest."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(name)
        if timer and timer.when() <= loop.time() + seconds:
            return
        self.cancel_timer(name)
        self._timers[name] = loop.call_later(seconds, self._due, name)

    def _due(self, name: NamespacedName) -> None:
        del self._timers[name]
        self.add(name)

    async def take(self) -> NamespacedName:
        """The next pipeline that no worker has. Call ``done`` afterwards, whatever came of it."""
        while True:
            name = await self._queue.get()
            self._waiting.pop(name, None)
            if name in self._busy:
                self.add_after(name, BUSY_SECONDS)
                continue
            self._busy[name] = time.monotonic()
            metrics.QUEUE_LENGTH.set(len(self._waiting))
            return name

    def done(self, name: NamespacedName) -> None:
        """The worker that took a pipeline has finished with it."""
        self._busy.pop(name, None)

    def cancel_timer(self, name: NamespacedName) -> None:
        """Forget when a pipeline was to be looked at again: it is gone."""
        if timer := self._timers.pop(name, None):
            timer.cancel()

    def older_than(self, seconds: float) -> list[NamespacedName]:
        """Pipelines that have waited, or been worked on, for longer."""
        now = time.monotonic()
        return [name for name, since in {**self._waiting, **self._busy}.items() if now - since > seconds]
