"""``steerlm status``: how far a pipeline is."""

from __future__ import annotations

from pathlib import Path

import typer

from nemo_steerlm.cli.run import print_plan
from nemo_steerlm.pipeline import local


def status(
    file: Path = typer.Argument(help="The pipeline file."),
    workdir: Path | None = typer.Option(None, help="Its work directory.  [default: runs/NAME]"),
) -> None:
    """Show each stage's state: done, outdated (its inputs changed), interrupted, or waiting."""
    print_plan(file, workdir or local.default_workdir(file))
