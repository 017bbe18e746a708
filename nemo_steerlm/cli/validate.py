"""``steerlm validate``: is the pipeline file right, before anything runs."""

from __future__ import annotations

from pathlib import Path

import typer

from nemo_steerlm.cli.foresight import print_foresight
from nemo_steerlm.pipeline import local, manifest
from nemo_steerlm.pipeline.run_context import files_folder
from nemo_steerlm.pipeline.stages import stages


def validate(files: list[Path] = typer.Argument(help="Pipeline files.", metavar="FILE...")) -> None:
    """Check pipeline files; name every mistake and what to write instead.

    Says as well what can be known before anything runs: whether the data and the base model can be used, which licences
    are to be accepted, and what the trainings take on this machine. What is not on this machine is named, and no mistake.
    """
    for file in files:
        pipeline = manifest.load(file)
        graph = stages(pipeline)
        valid = f"{file}: {pipeline.metadata.name} is valid: {' → '.join(stage.name for stage in graph)}"
        print_foresight(pipeline, graph, files_folder(file), local.default_workdir(file), valid)
