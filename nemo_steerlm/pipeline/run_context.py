"""What a stage is given when it runs: its manifest, work directory, servers and place among shards and nodes."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_steerlm import __version__
from nemo_steerlm.core import environment
from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.core.objectives import ModelKind
from nemo_steerlm.core.processes import report
from nemo_steerlm.data.hub import RepositoryKind
from nemo_steerlm.data.packages import REMOTE, local_path
from nemo_steerlm.data.shard import Shard
from nemo_steerlm.pipeline.artifacts import WorkDirectory
from nemo_steerlm.pipeline.manifest import SteerLMPipeline
from nemo_steerlm.pipeline.stages import Stage

RECORDED_VERSIONS = ("torch", "nemo_toolkit", "megatron-core", "transformers")
"""Packages whose versions are worth recording beside an artifact."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One stage about to run."""

    pipeline: SteerLMPipeline
    stage: Stage
    work: WorkDirectory
    manifest: Path
    servers: Mapping[ModelKind, Sequence[str]]
    shard: Shard | None = None
    merge: bool = False
    lock: int | None = None
    """File descriptor of the stage's lock, handed to children so that it stays locked while any of them lives."""

    @property
    def folder(self) -> Path:
        """Where the stage writes."""
        return self.work.folder(self.stage.name)

    def input(self, stage: str, name: str) -> Path:
        """An output of an earlier stage."""
        return self.work.folder(stage) / name

    def resolve(self, reference: str, kind: RepositoryKind = "dataset") -> Path:
        """A local file for a manifest's reference; archives are fetched once. Raises UsageError where there is none."""
        return resolve(reference, files_folder(self.manifest), kind)

    @property
    def manifest_text(self) -> str:
        """The pipeline file as it was written."""
        return self.manifest.read_text(encoding="utf-8")

    def progress(self, done: int, total: int, **fields: Any) -> None:
        """Say how far the stage is."""
        report("progress", stage=self.stage.name, done=done, total=total, **fields)

    def warn(self, sentence: str) -> None:
        """Say what a person should know though the stage goes on."""
        report("warning", stage=self.stage.name, text=sentence)


def files_folder(manifest: Path) -> Path:
    """Where the manifest's relative references start: its own folder, unless the environment names another."""
    return Path(os.environ.get(environment.FILES) or manifest.absolute().parent)


def resolve(reference: str, folder: Path, kind: RepositoryKind = "dataset") -> Path:
    """A local path for ``reference``, relative ones starting at ``folder``. Raises UsageError where nothing is there."""
    path = local_path(reference, kind=kind) if reference.startswith(REMOTE) else folder / reference
    if not path.exists():
        raise UsageError(f"{reference}: no such file or folder (looked at {path})")
    return path


def node_rank() -> int:
    """This machine's number among those that train together; 0 where it is alone."""
    return int(os.environ.get(environment.NODE_RANK, "0"))


def part_name(stage: str) -> str:
    """The stage's name on the first or only node, ``train-value.node-1`` on the second: what each node locks and logs under."""
    return f"{stage}.node-{rank}" if (rank := node_rank()) else stage


def versions() -> dict[str, str]:
    """Versions worth recording beside an artifact."""
    versions = {"nemo_steerlm": __version__}
    for package in RECORDED_VERSIONS:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
