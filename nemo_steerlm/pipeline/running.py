"""What ``steerlm stage NAME`` does: find the inputs, skip work that is done, do the rest, and say so last."""

from __future__ import annotations

import contextlib
import os
import pkgutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from nemo_steerlm.core import environment
from nemo_steerlm.core.errors import UsageError, shown
from nemo_steerlm.core.objectives import ModelKind
from nemo_steerlm.core.processes import exit_on_sigterm, report
from nemo_steerlm.data.shard import Shard
from nemo_steerlm.pipeline import manifest as manifests
from nemo_steerlm.pipeline.artifacts import Begun, Success, WorkDirectory
from nemo_steerlm.pipeline.currency import differences, examine, hashes, identity_of
from nemo_steerlm.pipeline.run_context import Run, files_folder, part_name, versions
from nemo_steerlm.pipeline.stages import Stage, find, stages
from nemo_steerlm.pipeline.temporary_files import temporary_files

VISIBLE_SECONDS = 90.0
"""How long a file that another machine wrote may stay unseen: NFS clients cache a folder's attributes for up to 60 s by default."""


def run_stage(
    name: str,
    manifest: Path,
    workdir: Path,
    *,
    servers: Mapping[ModelKind, Sequence[str]] | None = None,
    shard: Shard | None = None,
    merge: bool = False,
) -> Success | None:
    """Run one stage to its ``_SUCCESS.json``, or find that it is there. Returns None for a shard, or a rank that is not the first.

    Raises:
        UsageError: If an input is absent, or no server is given for a role that the stage needs.
        TryAgainError: If an input is known to be finished, but this machine does not see it yet.
        SteerLMError: What the stage itself raises; the exit code is the error's.
    """
    exit_on_sigterm()
    pipeline = manifests.load(manifest)
    stage = find(stages(pipeline), name)
    work = WorkDirectory(workdir)
    inputs_folder = files_folder(manifest)
    _await_inputs(stage, work)
    identity = identity_of(stage, work, inputs_folder)
    wanted, *equal = hashes(pipeline, stage, identity)
    begun = Begun(input_hash=wanted, identity=identity)
    # Nodes that train together hold a lock each: they run side by side, but never beside another attempt of themselves.
    with work.lock(part_name(name), shared=shard is not None) as lock:
        examined = examine(pipeline, stage, work, inputs_folder)
        if examined.state == "done" and examined.success:
            _tell("cached", examined.success)
            return examined.success
        started = time.monotonic()
        work.begin(name, begun, equal=equal, other=lambda before: differences(before, identity))
        for need in () if merge else stage.servers:
            if not (servers or {}).get(need.role):
                raise UsageError(f"stage {name} needs a server of {need.stage}: give --server {need.role}=URL")
        run = Run(pipeline=pipeline, stage=stage, work=work, manifest=manifest, servers=servers or {}, shard=shard, merge=merge, lock=lock)
        with temporary_files(work.path / ".tmp" / (f"{name}.shard-{shard.index}" if shard else part_name(name))):
            metrics = _work_of(stage)(run)
        if metrics is None:
            return None
        success = work.finish(stage, begun, metrics=metrics, versions=versions(), seconds=time.monotonic() - started)
    _tell("done", success)
    return success


def _await_inputs(stage: Stage, work: WorkDirectory) -> None:
    """Wait a while for the ``_SUCCESS.json`` of stages that are known to be done: another machine wrote them."""
    if os.environ.get(environment.INPUTS_FINISHED) != "1":
        return
    deadline = time.monotonic() + VISIBLE_SECONDS
    while any(work.success(name) is None for name in stage.after) and time.monotonic() < deadline:
        for name in stage.after:
            with contextlib.suppress(OSError):
                os.listdir(work.folder(name))  # makes an NFS client ask the server again
        time.sleep(1)


def _work_of(stage: Stage) -> Callable[[Run], dict[str, Any] | None]:
    """What the stage's description names."""
    work: Callable[[Run], dict[str, Any] | None] = pkgutil.resolve_name(stage.run)
    return work


def _tell(kind: str, success: Success) -> None:
    """Say what the stage came to: on standard output, and where the environment asks for it."""
    report(kind, stage=success.stage, inputHash=success.input_hash, metrics=success.metrics)
    if path := os.environ.get(environment.TERMINATION_LOG):
        line = environment.result_line(cached=kind == "cached", input_hash=success.input_hash, metrics=success.metrics)
        Path(path).write_text(line, encoding="ascii")


def parse_servers(texts: Sequence[str]) -> dict[ModelKind, list[str]]:
    """``value=http://…`` arguments by role. Raises UsageError for any other shape."""
    servers: dict[ModelKind, list[str]] = {}
    for text in texts:
        role, equals, url = text.partition("=")
        if role not in get_args(ModelKind) or not equals or not url.startswith(("http://", "https://")):
            raise UsageError(f"--server {shown(text)}: write value=http://HOST:PORT or steer=http://HOST:PORT")
        servers.setdefault(cast(ModelKind, role), []).append(url)
    return servers
