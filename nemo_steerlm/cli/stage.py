"""``steerlm stage``: one stage of a pipeline, the command that both executors start."""

from __future__ import annotations

from pathlib import Path

import typer

from nemo_steerlm.data.shard import Shard
from nemo_steerlm.pipeline import registry, running


def stage(
    name: str = typer.Argument(help=f"Stage: {registry.known()}."),
    manifest: Path = typer.Option(..., help="The pipeline file."),
    workdir: Path = typer.Option(..., help="The pipeline's work directory."),
    server: list[str] = typer.Option([], help="value=URL or steer=URL of a running server; may be given several times."),
    shard: str | None = typer.Option(None, help="Do part INDEX/COUNT only (annotate); --merge puts the parts together."),
    merge: bool = typer.Option(False, "--merge", help="Merge finished shards into the stage's outputs (annotate)."),
) -> None:
    """Run one stage: read its inputs, write its outputs, and _SUCCESS.json last. Work that is already done is found and kept."""
    part = Shard.parse(shard) if shard else None
    running.run_stage(name, manifest, workdir, servers=running.parse_servers(server), shard=part, merge=merge)
