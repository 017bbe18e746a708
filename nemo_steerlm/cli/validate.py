"""``steerlm validate``: is the pipeline file right, before anything runs."""

from __future__ import annotations

from pathlib import Path

import typer

from nemo_steerlm.pipeline import manifest
from nemo_steerlm.pipeline.stages import stages


def validate(files: list[Path] = typer.Argument(help="Pipeline files.", metavar="FILE...")) -> None:
    """Check pipeline files; name every mistake and what to write instead."""
    for file in files:
        pipeline = manifest.load(file)
        names = " → ".join(stage.name for stage in stages(pipeline))
        print(f"{file}: {pipeline.metadata.name} is valid: {names}")
