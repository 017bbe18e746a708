"""``steerlm run``: a pipeline on this machine, with a progress bar a stage."""

from __future__ import annotations

import shlex
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import typer

from nemo_steerlm.cli.foresight import print_foresight
from nemo_steerlm.core.errors import UsageError, shown
from nemo_steerlm.core.processes import Message
from nemo_steerlm.pipeline import local
from nemo_steerlm.pipeline import manifest as manifests
from nemo_steerlm.pipeline.currency import StageState
from nemo_steerlm.pipeline.evaluate_spec import EvaluateSpec
from nemo_steerlm.pipeline.run_context import files_folder
from nemo_steerlm.pipeline.stages import Stage, stages
from nemo_steerlm.pipeline.time_left import TimeLeft, spoken

if TYPE_CHECKING:
    from nemo_steerlm.evaluation.samples import Sample
    from nemo_steerlm.evaluation.showcase import AnswerPair

SAY_EVERY = 30.0
"""Seconds between two lines of a log."""


def run(
    file: Path = typer.Argument(help="The pipeline file."),
    workdir: Path | None = typer.Option(None, help="Where artifacts go.  [default: runs/NAME]"),
    from_stage: str | None = typer.Option(None, "--from", help="Run this stage and all after it again, even if they are done."),
    until_stage: str | None = typer.Option(None, "--until", help="Stop after this stage."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print the stages, what would run and what it takes; start nothing."),
) -> None:
    """Run a pipeline: stages that are done are kept, an interrupted one goes on where it was."""
    if not file.is_file():
        raise UsageError(f"{file}: no such file")
    work = workdir or local.default_workdir(file)
    pipeline = manifests.load(file)
    graph = stages(pipeline)
    if dry_run:
        print_plan(file, work)
        print_foresight(pipeline, graph, files_folder(file), work)
        return
    left = TimeLeft(pipeline.spec, graph)
    listener = _ProgressBars(left) if sys.stdout.isatty() else _ProgressLines(left)
    with listener, local.stop_on_signals():
        local.run_pipeline(file, work, from_stage=from_stage, until_stage=until_stage, listener=listener)
    _print_result(work, pipeline.spec.evaluate)


def print_plan(file: Path, work: Path) -> None:
    """One line per stage: its state, how long it took, what it runs."""
    for state in local.stage_states(file, work):
        took = f"{state.seconds:7.1f} s" if state.state == "done" else " " * 9
        width = state.stage.parallel
        wide = (
            f"  {width.nodes}x{width.devices} devices, TP {width.tensor}, PP {width.pipeline}, DP {width.data}"
            if width.devices * width.nodes > 1
            else ""
        )
        command = " ".join(state.stage.command(str(file), str(work)))
        print(f"{state.stage.name:20} {state.state:12} {took}  steerlm {command}{wide}{_why(state)}")


def _why(state: StageState) -> str:
    return f"  ({state.reason})" if state.reason and state.state == "outdated" else ""


def _print_result(work: Path, how: EvaluateSpec) -> None:
    """The summary, some answers, and how to go on, asking as it was asked for the summary."""
    summary = work / "evaluate" / "summary.txt"
    if not summary.exists():
        return
    print(summary.read_text(encoding="utf-8"))
    pairs = _answer_pairs(work)
    for pair in pairs:
        asked_for, count = (
            f"{shown(pair.prompt)}, {pair.attribute} {pair.lowest.level} and {pair.highest.level}",
            len(pair.lowest.candidates),
        )
        print(f"{asked_for}, best of {count}:" if count else f"{asked_for}:")
        _print_answers(pair.lowest, pair.highest)
        if count:
            print("  and in single answers:")
            _print_answers(pair.lowest.single, pair.highest.single)
    print(f"\nreport: {(work / 'evaluate' / 'report.html').resolve()}")
    asked = f"{pairs[0].attribute}={pairs[0].highest.level}" if pairs else "ATTRIBUTE=VALUE"
    tuned = ["--strength", f"{how.guidance_scale:g}"] * (how.guidance_scale != 1) + ["--best-of", str(how.best_of)] * (how.best_of > 1)
    print(f"talk to it: {shlex.join([*_program(), 'chat', str(work.resolve()), '--set', asked, *tuned])}")


def _print_answers(*samples: Sample) -> None:
    for sample in samples:
        print(f"  {sample.level}: {' '.join(sample.answer.split())}")


def _answer_pairs(work: Path) -> list[AnswerPair]:
    from nemo_steerlm.evaluation.showcase import answer_pairs, read_samples

    best = msgspec.json.decode((work / "evaluate" / "metrics.json").read_bytes())["best"]
    return answer_pairs(read_samples(work / "evaluate" / "samples.jsonl", best))


def _program() -> list[str]:
    """This command, so that what is printed works in any shell."""
    beside = Path(sys.executable).with_name("steerlm")
    return [str(beside)] if beside.is_file() else [sys.executable, "-m", "nemo_steerlm.cli.main"]


def _state(message: Message) -> str:
    text = message.get("text") or message.get("phase") or ""
    return f"loss {message['loss']:.3f}" if message.get("loss") is not None else str(text)


class _ProgressLines(local.Listener):
    """For logs and pipes: a line when a stage starts, one when it ends, and every half minute one that says how far it is."""

    def __init__(self, left: TimeLeft, interval: float = SAY_EVERY) -> None:
        self._left = left
        self._interval = interval
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._stage: str | None = None
        self._message: Message | None = None
        self._timer = threading.Thread(target=self._run, name="progress", daemon=True)

    def started(self, stage: Stage) -> None:
        with self._lock:
            self._left.started(stage.name)
            self._stage, self._message = stage.name, None
        print(f"{stage.name}: started", flush=True)

    def message(self, stage: Stage, message: Message) -> None:
        if message["steerlm"] == "warning":
            print(f"{stage.name}: {message['text']}", flush=True)
        elif message["steerlm"] == "progress" and stage.name == self._stage:
            with self._lock:
                self._left.progressed(message)
                self._message = message

    def finished(self, stage: Stage, seconds: float, *, cached: bool) -> None:
        with self._lock:
            self._left.finished(stage.name, seconds, cached=cached)
            self._stage = None
        print(f"{stage.name}: {'already done' if cached else 'done'} in {seconds:.1f} s", flush=True)

    def line(self) -> str | None:
        """How far the current stage is; None between stages."""
        with self._lock:
            if self._stage is None:
                return None
            message = self._message
            far = "starting" if message is None else ", ".join(filter(None, (f"{message['done']} of {message['total']}", _state(message))))
            left, whole = self._left.of_stage, self._left.of_pipeline
            parts = [f"{spoken(left)} left"] if left is not None else []
            parts += [f"about {spoken(whole)} for the whole pipeline"] if whole is not None else []
            return "; ".join([f"{self._stage}: {far}", *parts])

    def _run(self) -> None:
        while not self._ended.wait(self._interval):
            if line := self.line():
                print(line, flush=True)

    def __enter__(self) -> _ProgressLines:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._timer.join()


class _ProgressBars(local.Listener):
    """For people: a bar a stage, with steps or records, the loss, time passed and time left, and when the whole will be done."""

    def __init__(self, left: TimeLeft) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._left = left
        self._bars = Progress(
            TextColumn("{task.description:20}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]:24}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._tasks: dict[str, int] = {}

    def _task(self, stage: Stage) -> int:
        if stage.name not in self._tasks:
            self._tasks[stage.name] = int(self._bars.add_task(stage.name, total=None, state=""))
        return self._tasks[stage.name]

    def started(self, stage: Stage) -> None:
        self._left.started(stage.name)
        self._task(stage)

    def message(self, stage: Stage, message: Message) -> None:
        if message["steerlm"] == "warning":
            self._bars.console.print(f"{stage.name}: {message['text']}", markup=False, highlight=False, soft_wrap=True)
        elif message["steerlm"] == "progress":
            self._left.progressed(message)
            whole = self._left.of_pipeline
            state = ", ".join(filter(None, (_state(message), "" if whole is None else f"all: {spoken(whole)} left")))
            self._bars.update(self._task(stage), completed=message["done"], total=message["total"], state=state)  # type: ignore[arg-type]

    def finished(self, stage: Stage, seconds: float, *, cached: bool) -> None:
        self._left.finished(stage.name, seconds, cached=cached)
        self._bars.update(self._task(stage), completed=1, total=1, state="already done" if cached else f"done in {seconds:.0f} s")  # type: ignore[arg-type]

    def __enter__(self) -> _ProgressBars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
