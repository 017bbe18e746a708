"""Showing how far a labelling run is: a bar on a terminal, JSON lines for another program, or nothing."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Literal

from nemo_steerlm.core.processes import report

ProgressKind = Literal["auto", "json", "none"]
Progress = Callable[[int, int], None]
"""Called with records done and records in all."""

LINE_SECONDS = 1.0


@contextlib.contextmanager
def shown(kind: ProgressKind) -> Iterator[Progress]:
    """What shows progress while the block runs.

    Args:
        kind: ``auto`` draws a bar if standard error is a terminal; ``json`` prints one message per second (see ``core.processes``).
    """
    if kind == "json":
        yield _json_lines()
    elif kind == "auto" and sys.stderr.isatty():
        with _bar() as progress:
            yield progress
    else:
        yield lambda _done, _total: None


def _json_lines() -> Progress:
    last = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_SECONDS or done == total:
            last = now
            report("progress", stage="annotate", done=done, total=total)

    return progress


@contextlib.contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    rate_column = TextColumn("{task.fields[rate]:.1f} records/s")
    columns = (TextColumn("annotate"), BarColumn(), MofNCompleteColumn(), rate_column, TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("annotate", total=None, rate=0.0)
        began, resumed = time.monotonic(), -1

        def progress(done: int, total: int) -> None:
            nonlocal resumed
            resumed = done if resumed < 0 else resumed
            rate = (done - resumed) / max(time.monotonic() - began, 1e-9)
            bar.update(task, completed=done, total=total, rate=rate)

        yield progress
