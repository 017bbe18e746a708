"""``steerlm plan``."""

from __future__ import annotations

import enum
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import typer

from nemo_steerlm.core.errors import ConfigError, UsageError
from nemo_steerlm.pipeline import local
from nemo_steerlm.pipeline import manifest as manifests
from nemo_steerlm.pipeline.artifacts import WorkDirectory
from nemo_steerlm.pipeline.crd import dump
from nemo_steerlm.pipeline.currency import StageState, identity_of
from nemo_steerlm.pipeline.run_context import files_folder
from nemo_steerlm.pipeline.stages.stage import digest

RENDERERS = "nemo_steerlm.renderers"
"""Entry point group: name ``kubernetes`` is a function (manifest text, namespace, operator's configuration file) -> list of objects."""


class OutputFormat(str, enum.Enum):
    """What to print."""

    table = "table"
    yaml = "yaml"
    json = "json"


def plan(
    file: Path = typer.Argument(help="The pipeline file."),
    workdir: Path | None = typer.Option(None, help="Its work directory.  [default: runs/NAME]"),
    output: OutputFormat = typer.Option(
        OutputFormat.table, "--output", "-o", help="table: the stages; yaml or json: the Kubernetes objects."
    ),
    namespace: str = typer.Option("default", "--namespace", "-n", help="Namespace of the objects."),
    operator_config: Path | None = typer.Option(None, help="The operator's configuration, for its defaults."),
) -> None:
    """Show what a run would do: stages, input hashes, what is done already, or the objects that a cluster would get."""
    if output is OutputFormat.table:
        _print_stages(file, workdir or local.default_workdir(file))
        return
    objects = render(file, namespace, operator_config)
    if output is OutputFormat.yaml:
        print("---\n".join(dump(item) for item in objects), end="")
    else:
        print(json.dumps(objects, indent=2))


def render(file: Path, namespace: str, operator_config: Path | None) -> list[dict[str, Any]]:
    """The objects of a pipeline.

    Raises:
        ConfigError: If the operator is not installed beside this package.
    """
    manifests.load(file)
    found = list(importlib.metadata.entry_points(group=RENDERERS, name="kubernetes"))
    if not found:
        raise ConfigError("the operator is not installed, so no objects can be shown: pip install 'nemo_steerlm[operator]'")
    objects: list[dict[str, Any]] = found[0].load()(file, namespace, operator_config)
    return objects


def _print_stages(file: Path, workdir: Path) -> None:
    pipeline = manifests.load(file)
    work = WorkDirectory(workdir)
    states = local.stage_states(file, workdir)
    print(f"{pipeline.metadata.name}: {len(states)} stages, work directory {workdir}")
    width = max(len(state.stage.name) for state in states)
    for state in states:
        reason = f"  {state.reason}" if state.reason and state.state == "outdated" else ""
        print(f"  {state.stage.name:{width}}  {state.state:11}  {_hash(state, work, file):64}  {_needs(state)}{reason}".rstrip())
    if pipeline.spec.serve.enabled:
        print(f"  {'serve':{width}}  stays")


def _hash(state: StageState, work: WorkDirectory, file: Path) -> str:
    waits = [name for name in state.stage.after if work.success(name) is None]
    if waits:
        return f"known once {', '.join(waits)} is done"
    try:
        return digest(state.identity or identity_of(state.stage, work, files_folder(file)))
    except UsageError as error:  # a pipeline for a cluster is planned where its files are not
        return f"known where its files are: {str(error).split(': no such', maxsplit=1)[0]} is not here"


def _needs(state: StageState) -> str:
    stage = state.stage
    parts = [f"{stage.parallel.nodes} nodes x {stage.parallel.devices} devices"] if stage.training else []
    parts += [f"{stage.shards} shards"] if stage.shards > 1 else []
    parts += [f"{need.replicas} {need.role} servers" for need in stage.servers]
    return ", ".join(parts)
