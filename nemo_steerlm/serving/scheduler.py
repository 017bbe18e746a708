"""The one thread that drives an engine: it batches waiting jobs, steps them, and hands results to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence

from nemo_steerlm.core.errors import SteerLMError
from nemo_steerlm.inference.engine import Engine, ScoredTurn, ScoreRequest
from nemo_steerlm.serving.metrics import Metrics
from nemo_steerlm.serving.model import Delta, EngineFailedError, Generation, QueueFullError

logger = logging.getLogger(__name__)

_SCORE_TOKENS = 16_384
"""Padded tokens per scoring batch: larger batches are not faster."""


class _Job:
    """A generation or scoring request, and the queue of its results."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Generation | ScoreRequest, length: int) -> None:
        self.loop = loop
        self.work = work
        self.length = length
        self.results: asyncio.Queue[Delta | list[ScoredTurn] | SteerLMError] = asyncio.Queue()
        self.cancelled = False
        self.arrived = time.monotonic()

    def send(self, result: Delta | list[ScoredTurn] | SteerLMError) -> None:
        try:
            self.loop.call_soon_threadsafe(self.results.put_nowait, result)
        except RuntimeError:  # the loop is closed: nobody waits for the result
            self.cancelled = True


def _rows(job: _Job) -> int:
    return job.work.request.rows if isinstance(job.work, Generation) else 1


class Scheduler:
    """A Model around an engine: continuous batching for generation, batches of similar length for scoring."""

    def __init__(self, engine: Engine, *, max_waiting: int = 256) -> None:
        """Start the engine's thread.

        Args:
            engine: Driven by that thread alone.
            max_waiting: Conversations and rows that may wait before new ones are refused.
        """
        self.info = engine.info
        self.tokenizer = engine.tokenizer
        self.max_length = engine.max_length
        self.metrics = Metrics()
        self.guides = True
        self._engine = engine
        self._max_waiting = max_waiting
        self._generations: deque[_Job] = deque()
        self._scores: list[_Job] = []
        self._running: dict[int, _Job] = {}
        self._rows = 0
        self._reused = 0
        """Tokens that the metrics have counted."""
        self._idle = 0
        """Free rows, summed over the steps since a row last joined."""
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """See Model. Ends the thread; waiting jobs get no result."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=30)
        if not self._thread.is_alive():
            self._engine.close()

    def require_room(self, more: int) -> None:
        """See Model. A request larger than the queue is admitted if the queue is empty.

        Raises:
            QueueFullError: If ``more`` rows or conversations cannot wait.
        """
        with self._changed:
            waiting = len(self._generations) + len(self._scores)
            if waiting and waiting + more > self._max_waiting:
                raise QueueFullError(f"{waiting} requests wait already")

    async def stream(self, generation: Generation, together: int = 1) -> AsyncIterator[Delta]:
        """See Model. Leaving the loop early, or being cancelled, frees the row."""
        job = self._submit(generation, len(generation.request.prompt), together)
        try:
            while True:
                result = await job.results.get()
                if isinstance(result, SteerLMError):
                    raise result
                assert isinstance(result, Delta)
                yield result
                if result.finish:
                    return
        finally:
            self._cancel(job)

    async def score(self, requests: Sequence[tuple[ScoreRequest, int]]) -> list[list[ScoredTurn]]:
        """See Model."""
        jobs: list[_Job] = []
        try:
            for request, length in requests:
                jobs.append(self._submit(request, length, len(requests)))
            results = []
            for job in jobs:
                result = await job.results.get()
                if isinstance(result, SteerLMError):
                    raise result
                assert isinstance(result, list)
                results.append(result)
            return results
        finally:
            for job in jobs:
                self._cancel(job)

    def _submit(self, work: Generation | ScoreRequest, length: int, together: int) -> _Job:
        job = _Job(asyncio.get_running_loop(), work, length)
        with self._changed:
            waiting = len(self._generations) + len(self._scores)
            # Checked again: several requests may have found room at the same moment.
            if waiting >= max(self._max_waiting, together):
                raise QueueFullError(f"{waiting} requests wait already")
            if isinstance(work, Generation):
                self._generations.append(job)
            else:
                self._scores.append(job)
            self._observe()
            self._changed.notify()
        return job

    def _cancel(self, job: _Job) -> None:
        with self._changed:
            job.cancelled = True
            # At once: a place in the queue that nobody waits at would keep others out.
            with contextlib.suppress(ValueError):
                self._generations.remove(job) if isinstance(job.work, Generation) else self._scores.remove(job)
            self._observe()
            self._changed.notify()

    def _observe(self) -> None:
        self.metrics.waiting.set(len(self._generations) + len(self._scores))
        self.metrics.running.set(len(self._running))

    def _run(self) -> None:
        while True:
            with self._changed:
                self._observe()
                self._changed.wait_for(self._wanted)
                if self._closed:
                    return
                self._scores = [job for job in self._scores if not job.cancelled]
                batch = self._score_batch()
                admitted = self._admitted()
                gone = [row for row, job in self._running.items() if job.cancelled]
                self._observe()
            if batch:
                self._score(batch)
            self._guarded_step(gone, admitted)

    def _wanted(self) -> bool:
        return bool(self._closed or self._generations or self._scores or self._running)

    def _guarded_step(self, gone: list[int], admitted: list[_Job]) -> None:
        """Step the engine. An engine error ends the running rows, not the server."""
        try:
            self._step(gone, admitted)
        except Exception:
            logger.exception("engine step failed")
            for row, job in list(self._running.items()):
                job.send(EngineFailedError("the engine failed; see the server's log"))
                self._forget(row)

    def _admitted(self) -> list[_Job]:
        """The jobs that join the batch now.

        Joining costs a forward for the prompt and a copy of all keys and values. So if more jobs wait than rows are free, free rows stay
        idle for some steps; once the idle rows add up to half a step of the whole batch, all of them are filled.
        """
        used = sum(map(_rows, self._running.values()))
        free = self._engine.max_rows - used
        if self._running and len(self._generations) > free:
            self._idle += free
            if self._idle < self._engine.max_rows // 2:
                return []
        self._idle = 0
        jobs: list[_Job] = []
        # A guided answer takes two rows. In an engine of one row it runs alone.
        while self._generations and (not used or used + _rows(self._generations[0]) <= self._engine.max_rows):
            job = self._generations.popleft()
            if not job.cancelled:
                jobs.append(job)
                used += _rows(job)
        return jobs

    def _score_batch(self) -> list[_Job]:
        """The oldest waiting conversation, and the waiting conversations closest to it in length."""
        if not self._scores:
            return []
        oldest = self._scores[0]
        nearest = sorted(self._scores, key=lambda job: (abs(job.length - oldest.length), job.arrived))
        batch: list[_Job] = []
        longest = 0
        for job in nearest[: self._engine.max_rows]:
            longest = max(longest, job.length)
            if batch and longest * (len(batch) + 1) > _SCORE_TOKENS:
                break
            batch.append(job)
        taken = set(map(id, batch))
        self._scores = [job for job in self._scores if id(job) not in taken]
        return batch

    def _score(self, jobs: list[_Job]) -> None:
        self.metrics.score_batch.observe(len(jobs))
        try:
            results = self._engine.score([job.work for job in jobs if isinstance(job.work, ScoreRequest)])
        except Exception:
            logger.exception("scoring failed")
            for job in jobs:
                job.send(EngineFailedError("the engine failed; see the server's log"))
            return
        # Counted before it is sent: who has the answer finds it in the metrics.
        self._count_reused()
        self.metrics.scored_turns.inc(sum(map(len, results)))
        for job, result in zip(jobs, results, strict=True):
            job.send(result)

    def _step(self, gone: list[int], admitted: list[_Job]) -> None:
        for row in gone:
            self._forget(row)
        for job in admitted:
            self._rows += 1
            self._running[self._rows] = job
            if isinstance(job.work, Generation):
                self._engine.add(self._rows, job.work.request)
                self.metrics.prompt_tokens.inc(job.length)
        if not self._running:
            return
        self.metrics.generate_batch.observe(len(self._running))
        tokens = self._engine.step()
        self._count_reused()
        for row, token in tokens.items():
            job = self._running[row]
            if not isinstance(job.work, Generation):
                continue
            delta = job.work.advance(token)
            if job.work.generated == 1:
                self.metrics.first_token.observe(time.monotonic() - job.arrived)
            self.metrics.generated_tokens.inc()
            if delta.finish:
                del self._running[row]
            job.send(delta)
            if delta.finish:
                self._engine.remove(row)

    def _count_reused(self) -> None:
        self.metrics.reused_tokens.inc(self._engine.reused_tokens - self._reused)
        self._reused = self._engine.reused_tokens

    def _forget(self, row: int) -> None:
        del self._running[row]
        self._engine.remove(row)
