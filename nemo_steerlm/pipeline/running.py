"""What ``steerlm stage NAME`` does: find the inputs, skip work that is done, do the rest, and say so last."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_steerlm import __version__
from nemo_steerlm.core.errors import UsageError, shown
from nemo_steerlm.data.packages import local_path
from nemo_steerlm.pipeline import manifest as manifests
from nemo_steerlm.pipeline.artifacts import Success, WorkDirectory
from nemo_steerlm.pipeline.manifest import SteerLMPipeline
from nemo_steerlm.pipeline.processes import exit_on_sigterm, report
from nemo_steerlm.pipeline.stages import ModelRole, Stage, find, stages

REMOTE = ("pypi:", "pypi-sdist:", "hf:")
"""References whose text names their content: a released archive or a hub file."""

FILES_VARIABLE = "STEERLM_FILES"
"""Where relative references start, when the manifest lies elsewhere (in a pod it is a mounted ConfigMap)."""
SALT_VARIABLE = "STEERLM_SALT"
NODE_RANK_VARIABLE = "PET_NODE_RANK"
"""This machine's number among those that train together, as torchrun reads it."""
RESULT_VARIABLE = "STEERLM_TERMINATION_LOG"
"""A file that gets the stage's result as one line, for an operator that cannot read the work directory."""
RESULT_LIMIT = 4096
"""Bytes of a pod's termination message."""

RECORDED_VERSIONS = ("torch", "nemo_toolkit", "megatron-core", "transformers")


@dataclasses.dataclass(frozen=True)
class Shard:
    """Part ``index`` (0-based) of ``count``."""

    index: int
    count: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One stage about to run."""

    pipeline: SteerLMPipeline
    stage: Stage
    work: WorkDirectory
    manifest: Path
    servers: Mapping[ModelRole, Sequence[str]]
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

    def resolve(self, reference: str) -> Path:
        """A local file for a manifest's reference; archives are fetched once. Raises UsageError where there is none."""
        return resolve(reference, files_folder(self.manifest))

    @property
    def manifest_text(self) -> str:
        """The pipeline file as it was written."""
        return self.manifest.read_text(encoding="utf-8")

    def progress(self, done: int, total: int, **fields: Any) -> None:
        """Say how far the stage is."""
        report("progress", stage=self.stage.name, done=done, total=total, **fields)


def files_folder(manifest: Path) -> Path:
    """Where the manifest's relative references start: its own folder, unless the environment names another."""
    return Path(os.environ.get(FILES_VARIABLE) or manifest.absolute().parent)


def resolve(reference: str, folder: Path) -> Path:
    """A local path for ``reference``, relative ones starting at ``folder``. Raises UsageError where nothing is there."""
    path = local_path(reference) if reference.startswith(REMOTE) else folder / reference
    if not path.exists():
        raise UsageError(f"{reference}: no such file or folder (looked at {path})")
    return path


def node_rank() -> int:
    """This machine's number among those that train together; 0 where it is alone."""
    return int(os.environ.get(NODE_RANK_VARIABLE, "0"))


def input_hash(stage: Stage, work: WorkDirectory, folder: Path) -> str:
    """The stage's input hash. Raises UsageError where an input is not there yet."""
    done = {name: work.success(name) for name in stage.after}
    missing = [name for name, success in done.items() if success is None]
    if missing:
        raise UsageError(f"stage {stage.name} reads the outputs of {', '.join(missing)}, which has not finished in {work.path}")
    files = {r: r if r.startswith(REMOTE) else work.digest(resolve(r, folder)) for r in stage.files}
    digests = {name: success.digests() for name, success in done.items() if success}
    return stage.input_hash(files, digests, salt=os.environ.get(SALT_VARIABLE, ""))


def run_stage(
    name: str,
    manifest: Path,
    workdir: Path,
    *,
    servers: Mapping[ModelRole, Sequence[str]] | None = None,
    shard: Shard | None = None,
    merge: bool = False,
) -> Success | None:
    """Run one stage to its ``_SUCCESS.json``, or find that it is there. Returns None for a shard, or a rank that is not the first.

    Raises what the stage raises; the exit code is the error's.
    """
    from nemo_steerlm.pipeline.steps import STEPS

    exit_on_sigterm()
    pipeline = manifests.load(manifest)
    stage = find(stages(pipeline), name)
    work = WorkDirectory(workdir)
    inputs = input_hash(stage, work, files_folder(manifest))
    # Nodes that train together hold a lock each: they run side by side, but never beside another attempt of themselves.
    with work.lock(part_name(name), shared=shard is not None) as lock:
        done = work.success(name)
        if done and done.input_hash == inputs:
            _tell("cached", done)
            return done
        started = time.monotonic()
        work.begin(name, inputs)
        for need in () if merge else stage.servers:
            if not (servers or {}).get(need.role):
                raise UsageError(f"stage {name} needs a server of {need.stage}: give --server {need.role}=URL")
        run = Run(pipeline=pipeline, stage=stage, work=work, manifest=manifest, servers=servers or {}, shard=shard, merge=merge, lock=lock)
        metrics = STEPS[stage.kind](run)
        if metrics is None:
            return None
        success = work.finish(stage, inputs, metrics=metrics, versions=versions(), seconds=time.monotonic() - started)
    _tell("done", success)
    return success


def part_name(stage: str) -> str:
    """The stage's name on the first or only node, ``train-value.node-1`` on the second: what each node locks and logs under."""
    return f"{stage}.node-{rank}" if (rank := node_rank()) else stage


def _tell(kind: str, success: Success) -> None:
    """Say what the stage came to: on standard output, and where the environment asks for it."""
    report(kind, stage=success.stage, inputHash=success.input_hash, metrics=success.metrics)
    path = os.environ.get(RESULT_VARIABLE)
    if path:
        result = {"cached": kind == "cached", "inputHash": success.input_hash, "metrics": success.metrics}
        text = json.dumps(result)
        Path(path).write_text(text if len(text) <= RESULT_LIMIT else json.dumps({**result, "metrics": {}}), encoding="ascii")


def versions() -> dict[str, str]:
    """Versions worth recording beside an artifact."""
    found = {"nemo_steerlm": __version__}
    for package in RECORDED_VERSIONS:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def parse_servers(texts: Sequence[str]) -> dict[ModelRole, list[str]]:
    """``value=http://…`` arguments by role. Raises UsageError for any other shape."""
    servers: dict[ModelRole, list[str]] = {}
    for text in texts:
        role, equals, url = text.partition("=")
        if role not in ("value", "steer") or not equals or not url.startswith(("http://", "https://")):
            raise UsageError(f"--server {shown(text)}: write value=http://HOST:PORT or steer=http://HOST:PORT")
        servers.setdefault("value" if role == "value" else "steer", []).append(url)
    return servers


def parse_shard(text: str | None) -> Shard | None:
    """``3/16``: the third of sixteen, counted from 0. Raises UsageError for any other shape."""
    if text is None:
        return None
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UsageError(f"--shard {shown(text)}: write INDEX/COUNT with 0 <= INDEX < COUNT")
    return Shard(int(index), int(count))
