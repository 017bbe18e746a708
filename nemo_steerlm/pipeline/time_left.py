"""How long a stage and the whole pipeline will still take, by what has been seen of them so far.

A stage's own time follows from its progress. Stages that have not begun are estimated from those of this run that have: each stage is so
many texts to learn, to read or to write, and what a text takes is measured. The ratios of the three are rough, so the whole is "about".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from nemo_steerlm.core.processes import Message
from nemo_steerlm.pipeline.manifest import PipelineSpec
from nemo_steerlm.pipeline.stages import Stage

LEARN, READ, WRITE = 3.0, 1.0, 2.0
"""What a text costs: forward and backward; one forward; an answer, whose tokens come one by one but in large batches. The quickstart's."""


class TimeLeft:
    """The estimates of one run, from what its executor tells."""

    def __init__(self, spec: PipelineSpec, graph: Sequence[Stage], clock: Callable[[], float] = time.monotonic) -> None:
        self._spec = spec
        self._stages = {stage.name: stage for stage in graph}
        self._clock = clock
        self._records: int | None = None
        """Texts that are labelled, once it is known."""
        self._done: dict[str, float | None] = {}
        """Seconds of the stages that ended in this run; None for those that had been done before."""
        self._current: str | None = None
        self._began = 0.0
        self._phase: tuple[object, int, float] | None = None
        """The current stage's phase, how far it was when it was first heard of, and when."""
        self._left: float | None = None
        self._share = 0.0

    def started(self, stage: str) -> None:
        """A stage begins."""
        self._current, self._began = stage, self._clock()
        self._phase, self._left, self._share = None, None, 0.0

    def progressed(self, message: Message) -> None:
        """The current stage said how far it is."""
        done, total, now = int(message["done"]), int(message["total"]), self._clock()
        phase = message.get("phase")
        if self._phase is None or self._phase[0] != phase or done < self._phase[1]:
            self._phase = (phase, done, now)
        _, first, since = self._phase
        if "seconds_left" in message:
            self._left = float(message["seconds_left"])
        elif done > first:
            self._left = (now - since) / (done - first) * (total - done)
        self._share = done / total if total else 0.0
        if self._current is not None and self._stages[self._current].kind == "annotate":
            self._records = max(self._records or 0, total)

    def finished(self, stage: str, seconds: float, *, cached: bool) -> None:
        """A stage ended, or had been done before."""
        self._done[stage] = None if cached else seconds
        if stage == self._current:
            self._current = None

    @property
    def of_stage(self) -> float | None:
        """Seconds that the current stage, or its phase, still takes; None where nothing is known yet."""
        return self._left

    @property
    def of_pipeline(self) -> float | None:
        """Seconds until the last stage's end; None before a stage has shown how fast this machine is."""
        rate = self._seconds_a_text()
        if rate is None:
            return None
        waiting = [name for name in self._stages if name not in self._done and name != self._current]
        left = sum(self._texts(self._stages[name]) for name in waiting) * rate
        if self._current is not None:
            own = max(0.0, self._texts(self._stages[self._current]) * rate - (self._clock() - self._began))
            left += own if self._left is None else self._left
        return left

    def _seconds_a_text(self) -> float | None:
        """Of the stages of this run that did or are doing work."""
        ended = [(self._texts(self._stages[name]), seconds) for name, seconds in self._done.items() if seconds is not None]
        known = [(texts, seconds) for texts, seconds in ended if texts]
        if self._current is not None and self._share > 0 and self._left is not None:
            texts = self._texts(self._stages[self._current])
            known += [(texts, self._clock() - self._began + self._left)] if texts else []
        return sum(seconds for _, seconds in known) / sum(texts for texts, _ in known) if known else None

    def _texts(self, stage: Stage) -> float:
        """The work of a stage, in texts that are read once."""
        spec = self._spec
        if stage.training:
            return LEARN * stage.training.spec.max_steps * stage.training.spec.global_batch_size
        if stage.kind == "annotate":
            return READ * (self._records or 0)
        if stage.kind == "sample":
            return (WRITE + READ) * spec.bootstrap.prompts * spec.bootstrap.samples_per_prompt + self._evaluation(spec.evaluate.best_of)
        if stage.kind == "evaluate":
            how = spec.evaluate
            beside = self._evaluation(how.best_of if how.best_of_baselines else 1) * len(how.baselines)
            return self._evaluation(how.best_of) + beside + READ * how.calibration_turns
        return 0.0

    def _evaluation(self, candidates: int = 1) -> float:
        """Asking one model what the evaluation asks, for so many candidates for each answer."""
        how, schema = self._spec.evaluate, self._spec.attributes.schema_()
        levels = sum(len(schema[name].values) for name in how.attributes or schema.names)
        answers = levels * how.samples_per_level + how.joint_requests
        return (WRITE + READ) * answers * candidates


def spoken(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
