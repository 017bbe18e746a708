"""What changed since a pipeline was begun: its spec, a wish to run stages again, the operator's images. Pure."""

from __future__ import annotations

from nemo_steerlm.pipeline.cluster_status import ImagesStatus, StageStatus
from steerlm_operator import models
from steerlm_operator.draft import Draft, holds


def list_stages(draft: Draft) -> None:
    """Have an entry in the status for each stage that there is now."""
    known = {entry.name: entry for entry in draft.status.stages}
    draft.status.stages = [known.get(stage.name) or StageStatus(name=stage.name) for stage in draft.pipeline.graph]


def restart(draft: Draft) -> None:
    """A token not acted on yet: begin again at the stage it names, and where the pipeline failed."""
    status, asked = draft.status, draft.pipeline.restart
    if asked is None or asked.token == status.observed_restart_token:
        return
    status.observed_restart_token = asked.token
    if not any(entry.attempt for entry in status.stages):
        return  # a new pipeline starts anyway
    order = [entry.name for entry in status.stages]
    unfinished = next((entry.name for entry in status.stages if not entry.done), None)
    first = asked.from_stage or unfinished
    if first is None:
        draft.event("NothingToRestart", "every stage is done: name one in spec.restart.fromStage to do it again")
        return
    for index, entry in enumerate(status.stages):
        named = index >= order.index(first)
        if not named and entry.phase != "Failed":  # what failed has to be done before any stage behind it
            continue
        token = asked.token if named and asked.from_stage else entry.restart_token
        status.stages[index] = StageStatus(name=entry.name, attempt=entry.attempt, restart_token=token)
    status.images = None  # the operator's own by now
    _go_on(draft)
    draft.event("Restarted", f"again from {min(first, unfinished or first, key=order.index)}")


def redo_changed(draft: Draft) -> None:
    """Stages that the spec makes other ones than those that were begun, and all that read them: done again, whatever became of them.

    The spec changes only while the pipeline is suspended. A stage behind a changed one is cached if it finds that its inputs are the same.
    """
    status = draft.status
    redone: list[str] = []
    for index, (stage, entry) in enumerate(zip(draft.pipeline.graph, status.stages, strict=True)):
        if not entry.attempt:
            continue
        now = stage.spec_hash()
        if entry.spec_hash is None:  # an earlier version of the operator began it
            entry.spec_hash = now
        if entry.spec_hash == now and not set(stage.after) & set(redone):
            if entry.step == "Merge" and status.annotation and status.annotation.shards != stage.shards:
                entry.step = "Work"  # the parts that are done are parts of another number
            continue
        status.stages[index] = StageStatus(name=entry.name, attempt=entry.attempt, restart_token=entry.restart_token)
        redone.append(stage.name)
    if not redone:
        return
    if holds(status, "Complete") or holds(status, "Failed"):
        _go_on(draft)
    draft.event("SpecChanged", f"done again, as the spec has changed: {', '.join(redone)}")


def pin_images(draft: Draft) -> None:
    """From its start on a pipeline keeps its images: half of it by one version and half by another is nobody's result."""
    status = draft.status
    if status.images is not None:
        draft.pipeline = models.with_images(draft.pipeline, status.images)
    if status.images is not None or not draft.pipeline.suspend:
        images = draft.pipeline.images
        status.images = ImagesStatus(worker=images.worker, train=images.train, serve=images.serve, vllm=images.vllm)


def _go_on(draft: Draft) -> None:
    """Take back that the pipeline has ended."""
    status = draft.status
    status.conditions = [c for c in status.conditions if c.type not in ("Complete", "Failed", "Serving")]
    status.completion_time = status.endpoints = status.serving = None
    status.start_time = draft.timestamp()
    status.phase = "Running"
