"""``steerlm run``: a pipeline on this machine, with a progress bar a stage."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.core.processes import Message
from nemo_steerlm.pipeline import local
from nemo_steerlm.pipeline.currency import StageState
from nemo_steerlm.pipeline.stages import Stage


def run(
    file: Path = typer.Argument(help="The pipeline file."),
    workdir: Path | None = typer.Option(None, help="Where artifacts go.  [default: runs/NAME]"),
    from_stage: str | None = typer.Option(None, "--from", help="Run this stage and all after it again, even if they are done."),
    until_stage: str | None = typer.Option(None, "--until", help="Stop after this stage."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print the stages and what would run; start nothing."),
) -> None:
    """Run a pipeline: stages that are done are kept, an interrupted one goes on where it was."""
    if not file.is_file():
        raise UsageError(f"{file}: no such file")
    work = workdir or local.default_workdir(file)
    if dry_run:
        print_plan(file, work)
        return
    shown = _Bars() if sys.stdout.isatty() else _Lines()
    with shown, local.stop_on_signals():
        local.run_pipeline(file, work, from_stage=from_stage, until_stage=until_stage, listener=shown)
    _print_result(work)


def print_plan(file: Path, work: Path) -> None:
    """One line a stage: its state, how long it took, what it runs."""
    for state in local.plan(file, work):
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


def _print_result(work: Path) -> None:
    summary = work / "evaluate" / "summary.txt"
    if summary.exists():
        print(summary.read_text(encoding="utf-8"))
        print(f"report: {work / 'evaluate' / 'report.html'}")
        print(f"talk to it: steerlm chat {work} --set ATTRIBUTE=VALUE")


def _state(message: Message) -> str:
    if message["steerlm"] != "progress":
        return ""
    text = message.get("text") or message.get("phase") or ""
    return f"loss {message['loss']:.3f}" if "loss" in message else str(text)


class _Lines(local.Listener):
    """For logs and pipes: a line when a stage starts and one when it ends."""

    def started(self, stage: Stage) -> None:
        print(f"{stage.name}: started", flush=True)

    def finished(self, stage: Stage, seconds: float, *, cached: bool) -> None:
        print(f"{stage.name}: {'already done' if cached else 'done'} in {seconds:.1f} s", flush=True)

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class _Bars(local.Listener):
    """For people: a bar a stage, with steps or records, the loss, time passed and time left."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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
        self._task(stage)

    def message(self, stage: Stage, message: Message) -> None:
        if message["steerlm"] == "progress":
            self._bars.update(self._task(stage), completed=message["done"], total=message["total"], state=_state(message))  # type: ignore[arg-type]

    def finished(self, stage: Stage, seconds: float, *, cached: bool) -> None:
        self._bars.update(self._task(stage), completed=1, total=1, state="already done" if cached else f"done in {seconds:.0f} s")  # type: ignore[arg-type]

    def __enter__(self) -> _Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
