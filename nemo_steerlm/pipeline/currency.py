"""Whether a stage is current: decided here, for plans and for both executors.

A stage's identity is everything that decides its result. A finished stage is current while it would have the same identity now. What
version 0.1.0 finished is recognised by that version's hash.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from nemo_steerlm.core import environment
from nemo_steerlm.core.errors import TryAgainError, UsageError, shown
from nemo_steerlm.data.packages import REMOTE
from nemo_steerlm.pipeline import legacy
from nemo_steerlm.pipeline.artifacts import Success, WorkDirectory
from nemo_steerlm.pipeline.manifest import SteerLMPipeline
from nemo_steerlm.pipeline.run_context import resolve
from nemo_steerlm.pipeline.stages import Stage
from nemo_steerlm.pipeline.stages.stage import digest

State = Literal["done", "outdated", "interrupted", "waiting"]
SHOWN = 3
"""How many differences a reason names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageState:
    """How far one stage is, for executors, ``status`` and a plan."""

    stage: Stage
    state: State
    """``done``, ``outdated`` (it finished, but would give another result now), ``interrupted`` (it goes on), ``waiting``."""
    reason: str = ""
    """Why it is outdated."""
    identity: Mapping[str, Any] | None = None
    """What decides its result; None while that is not known."""
    success: Success | None = None
    """What it left when it finished."""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.success.seconds if self.success else 0.0

    @property
    def records(self) -> int | None:
        """Lines of its record files, if it is done."""
        return sum(o.records or 0 for o in self.success.outputs.values()) if self.success and self.state == "done" else None


def identity_of(stage: Stage, work: WorkDirectory, folder: Path) -> dict[str, Any]:
    """What decides the stage's result now.

    Args:
        stage: The stage.
        work: The pipeline's work directory.
        folder: Where the manifest's relative references start.

    Raises:
        UsageError: If a stage that it reads has not finished, or a file is absent.
        TryAgainError: If a stage that it reads has finished, but this machine does not see that yet.
    """
    done = {name: work.success(name) for name in stage.after}
    missing = [name for name, success in done.items() if success is None]
    if missing:
        reason = f"stage {stage.name} reads the outputs of {', '.join(missing)}, which has not finished in {work.path}"
        if os.environ.get(environment.INPUTS_FINISHED) == "1":
            raise TryAgainError(f"{reason}, although it is known to be done: a file system that caches attributes may show it late")
        raise UsageError(reason)
    files = {r: r if r.startswith(REMOTE) else work.digest(resolve(r, folder)) for r in stage.files}
    digests = {name: success.digests() for name, success in done.items() if success}
    return stage.identity(files, digests, salt=os.environ.get(environment.SALT, ""))


def examine(pipeline: SteerLMPipeline, stage: Stage, work: WorkDirectory, folder: Path, *, stale: Collection[str] = ()) -> StageState:
    """Whether the stage is done, and why not.

    Args:
        pipeline: The pipeline.
        stage: One of its stages.
        work: The pipeline's work directory.
        folder: Where the manifest's relative references start.
        stale: Stages that will run before this one, so that what it reads is not known yet.

    Raises:
        UsageError: If something of it is there to be judged, and a file that it reads is absent.
    """
    success, begun = work.success(stage.name), work.begun(stage.name)
    if success is None and begun is None:
        return StageState(stage=stage, state="waiting")
    unknown = [name for name in stage.after if name in stale or work.success(name) is None]
    if unknown:
        if success is None:
            return StageState(stage=stage, state="interrupted")
        return StageState(stage=stage, state="outdated", reason=f"it reads {', '.join(unknown)}, to be done first", success=success)
    identity = identity_of(stage, work, folder)
    accepted = hashes(pipeline, stage, identity)
    if success is None:
        state: State = "interrupted" if begun and begun.input_hash in accepted else "waiting"
        return StageState(stage=stage, state=state, identity=identity)
    if success.input_hash in accepted:
        return StageState(stage=stage, state="done", identity=identity, success=success)
    return StageState(stage=stage, state="outdated", reason=_reason(success, identity), identity=identity, success=success)


def hashes(pipeline: SteerLMPipeline, stage: Stage, identity: Mapping[str, Any]) -> tuple[str, ...]:
    """The input hashes that stand for ``identity``: today's first, then that of version 0.1.0."""
    old = legacy.legacy_hash(pipeline.spec, stage, identity)
    return (digest(identity), old) if old else (digest(identity),)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two identities of a stage in fields, files, inputs and salt, as short phrases. The format is none of these."""
    phrases = []
    old, new = before.get("fields", {}), now["fields"]
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            was, is_ = (shown(each[name]) if name in each else "its default" for each in (old, new))
            phrases.append(f"{name} was {was}, is {is_}")
    if before.get("files") != now["files"]:
        old, new = before.get("files", {}), now["files"]
        phrases += [f"{name} has another content" for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    old, new = before.get("inputs", {}), now["inputs"]
    for name in sorted({*old, *new}):
        changed = sorted(o for o in {*old.get(name, {}), *new.get(name, {})} if old.get(name, {}).get(o) != new.get(name, {}).get(o))
        phrases += [f"{output} of {name} is another" for output in changed]
    if before.get("salt") != now.get("salt"):
        phrases.append("it was asked to be done again")
    return phrases


def _reason(success: Success, identity: Mapping[str, Any]) -> str:
    version = success.versions.get("nemo_steerlm", "an unknown version")
    if not success.identity:
        if version == legacy.VERSION:
            return f"fields or inputs have changed since nemo_steerlm {version} finished it"
        return f"it was finished by another version's rules: nemo_steerlm {version}"
    changed = differences(success.identity, identity)
    if not changed:
        old, new = success.identity.get("format"), identity["format"]
        return f"it was finished by another version's rules: format {old}, this version gives format {new}"
    more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
    return "; ".join(changed[:SHOWN]) + more
