"""``decide(resource, observed) -> decision``: the whole operator as one pure function.

    Pending → Running → Succeeded | Failed          the end stays until spec.restart asks again
              Running ⇄ Retrying                    a stage waits for its next attempt
              Running → Suspending → Suspended → Running

The status records an intention (stage, attempt) before anything is made for it, so whoever decides next, after any crash, names the same
objects. Objects that run and are not wanted are deleted, whatever brought them about.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.pipeline.cluster_spec import MANAGED_BY
from nemo_steerlm.pipeline.cluster_status import Condition, ConditionType, PipelineStatus
from steerlm_operator import changes, conditions, device_hours, models, names, progress, readings, serving, storage
from steerlm_operator.config import OperatorConfig
from steerlm_operator.draft import Decision, Draft, Observed, find_condition, finished, holds
from steerlm_operator.models import Pipeline
from steerlm_operator.resources import servers, settings, surroundings, work

MISSING_API_SECONDS = 60
UNKNOWN_API_SECONDS = 2

GANG_APIS = {"Volcano": "scheduling.volcano.sh", "Coscheduling": "scheduling.x-k8s.io"}


def decide(resource: Mapping[str, Any], observed: Observed, config: OperatorConfig, now: datetime.datetime) -> Decision:
    """What to do for one resource. Pure: the same arguments give the same decision."""
    status = PipelineStatus.model_validate(resource.get("status") or {})
    metadata = resource["metadata"]
    if metadata.get("deletionTimestamp") or (resource.get("spec") or {}).get("managedBy", MANAGED_BY) != MANAGED_BY:
        return Decision(status=status)
    try:
        pipeline = models.parse(resource, config)
    except UsageError as error:
        return _refuse(status, metadata, str(error), now)
    draft = Draft(pipeline, observed, status, now)
    status.observed_generation = pipeline.generation
    draft.condition("Accepted", True, "Valid", "the resource can be run")
    changes.list_stages(draft)
    changes.restart(draft)
    if not pipeline.suspend:
        changes.redo_changed(draft)
    changes.pin_images(draft)
    device_hours.count(draft)
    if holds(status, "Complete") or holds(status, "Failed"):
        return _finished(draft)
    if pipeline.suspend:
        return _suspend(draft)
    _run(draft)
    if holds(status, "Complete") or holds(status, "Failed"):
        return _finished(draft)
    _summarize(draft)
    conditions.conclude(draft)
    return draft.decision()


def _refuse(status: PipelineStatus, metadata: Mapping[str, Any], message: str, now: datetime.datetime) -> Decision:
    """Beyond what the API server checks. Nothing is started or stopped: the last valid spec's work goes on until this is corrected."""
    moment = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    kinds: tuple[ConditionType, ...] = ("Accepted",)
    if not (holds(status, "Complete") or holds(status, "Failed")):
        kinds = ("Accepted", "Progressing", "Ready", "Stalled")
        status.progress = "InvalidSpec"
    kept = [condition for condition in status.conditions if condition.type not in kinds]
    for kind in kinds:
        before = find_condition(status, kind)
        kept.append(
            Condition(
                type=kind,
                status="True" if kind == "Stalled" else "False",
                reason="InvalidSpec",
                message=readings.shorten(message),
                last_transition_time=before.last_transition_time if before and before.reason == "InvalidSpec" else moment,
                observed_generation=metadata.get("generation", 0),
            )
        )
    status.conditions = sorted(kept, key=lambda condition: condition.type)
    status.observed_generation = metadata.get("generation", 0)
    return Decision(status=status)


def _suspend(draft: Draft) -> Decision:
    """Nothing is wanted, so everything that runs is deleted; quiet once it is gone."""
    status = draft.status
    for entry in status.stages:
        if entry.phase in ("Running", "Queued"):
            entry.phase, entry.reason, entry.message, entry.progress = "Pending", "Suspended", None, None
    status.endpoints = None
    status.conditions = [condition for condition in status.conditions if condition.type != "ServersReady"]
    if status.annotation:
        status.annotation.servers_ready = 0
    busy = [name for (kind, name), seen in draft.observed.children.items() if kind in ("Job", "Deployment") and not finished(seen)]
    busy += [pod["metadata"]["name"] for pod in draft.observed.pods if pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")]
    if busy:
        if status.phase != "Suspending":
            draft.event("Suspending", "its pods are being stopped")
        status.phase = "Suspending"
        draft.condition("Suspended", False, "Suspending", f"{len(busy)} objects still stop")
        draft.look_again(5)
    else:
        if status.phase != "Suspended":
            draft.event("Suspended", "nothing runs; finished stages are kept")
        status.phase = "Suspended"
        draft.condition("Suspended", True, "Suspended", "nothing runs; finished stages are kept")
    draft.condition("Progressing", False, "Suspended", "spec.suspend is true")
    status.progress = "suspended" if status.phase == "Suspended" else "suspending"
    conditions.conclude(draft)
    return draft.decision()


def _run(draft: Draft) -> None:
    pipeline, status = draft.pipeline, draft.status
    if status.phase in ("Suspended", "Suspending"):
        status.start_time = draft.timestamp()
        draft.condition("Suspended", False, "Resumed", "")
        draft.event("Resumed", "goes on")
        status.phase = "Running" if any(entry.attempt for entry in status.stages) else "Pending"
    status.start_time = status.start_time or draft.timestamp()
    limit = pipeline.run_policy.active_deadline_seconds
    if limit is not None:
        left = limit - draft.seconds_since(status.start_time)
        if left <= 0:
            _fail_pipeline(draft, "DeadlineExceeded", f"not done within {limit} s")
            return
        draft.look_again(left)
    if not (_engine_available(draft) and storage.ready(draft)):
        draft.keep = True  # what runs already needs neither to go on
        return
    draft.want(settings.config_map(pipeline), *surroundings.network_policies(pipeline))
    if status.phase == "Pending":
        draft.event("Started", f"{len(pipeline.graph)} stages to do")
    for stage, entry in zip(pipeline.graph, status.stages, strict=True):
        if entry.done:
            continue
        status.current_stage = stage.name
        status.round = stage.round
        if progress.advance(draft, stage, entry):
            continue
        status.phase = "Retrying" if entry.phase == "Retrying" else "Running"
        if entry.phase == "Failed":
            _fail_pipeline(draft, entry.reason or "StageFailed", f"{stage.name}: {entry.message}")
        return
    _complete(draft)


def _engine_available(draft: Draft) -> bool:
    pipeline, apis = draft.pipeline, draft.observed.apis
    wide = any(stage.parallel.nodes > 1 for stage in pipeline.graph)
    needed = {}
    if wide and pipeline.jobset:
        needed["jobset.x-k8s.io"] = (
            "JobSetNotInstalled",
            "spec.engine is JobSet, which this cluster does not have: use Job, or install it",
        )
    if pipeline.scheduling.queue_name:
        needed["kueue.x-k8s.io"] = ("KueueNotInstalled", "scheduling.queueName needs Kueue, which this cluster does not have")
    if wide and (api := GANG_APIS.get(pipeline.scheduling.gang or "None")):
        needed[api] = (
            "GangSchedulerNotInstalled",
            f"scheduling.gang {pipeline.scheduling.gang} needs {api}, which this cluster does not have",
        )
    if needed and apis is None:
        unknown = ", ".join(sorted(needed))
        draft.condition("Progressing", False, "EngineUnknown", f"the API server has not said yet whether it has {unknown}")
        draft.look_again(UNKNOWN_API_SECONDS)
        return False
    for api, (reason, message) in needed.items():
        if apis is not None and api not in apis:
            draft.condition("EngineAvailable", False, reason, message)
            draft.condition("Progressing", False, reason, message)
            draft.look_again(MISSING_API_SECONDS)
            return False
    draft.condition("EngineAvailable", True, "Available", f"trainings become {'JobSets' if pipeline.jobset else 'Jobs'}")
    return True


def _fail_pipeline(draft: Draft, reason: str, message: str) -> None:
    draft.status.phase = "Failed"
    draft.status.completion_time = draft.timestamp()
    for entry in draft.status.stages:
        if entry.phase in ("Running", "Queued", "Retrying"):
            entry.phase, entry.reason, entry.message, entry.progress = "Failed", reason, message, None
    draft.condition("Failed", True, reason, message)
    draft.condition("Complete", False, reason, message)
    draft.condition("Progressing", False, reason, message)
    draft.event("Failed", f"{reason}: {message}", warning=True)


def _complete(draft: Draft) -> None:
    draft.status.phase = "Succeeded"
    draft.status.completion_time = draft.timestamp()
    draft.status.current_stage = draft.status.round = None
    message = f"all {len(draft.status.stages)} stages are done"
    draft.condition("Complete", True, "AllStagesDone", message)
    draft.condition("Progressing", False, "AllStagesDone", message)
    draft.event("Complete", message)


def _finished(draft: Draft) -> Decision:
    """Ended: only the server that stays is wanted, and the resource itself for its time to live."""
    pipeline, status = draft.pipeline, draft.status
    draft.wanted.clear()
    draft.apply.clear()
    draft.last.clear()
    draft.inspect.clear()
    draft.watch.clear()
    draft.again = None
    status.endpoints = None
    status.conditions = [condition for condition in status.conditions if condition.type != "ServersReady"]
    if holds(status, "Complete"):
        status.progress = f"{len(status.stages)}/{len(status.stages)} stages"
        if pipeline.manifest.spec.serve.enabled:
            serving.serve(draft)
    else:
        failed = find_condition(status, "Failed")
        status.progress = f"{status.current_stage or ''} {failed.reason if failed else ''}".strip()
    conditions.conclude(draft)
    ttl = pipeline.run_policy.ttl_seconds_after_finished
    if ttl is not None:
        left = ttl - draft.seconds_since(status.completion_time)
        if left <= 0:
            return draft.decision(delete_self=True)
        draft.look_again(left)
    return draft.decision()


def _summarize(draft: Draft) -> None:
    status = draft.status
    entry = next((entry for entry in status.stages if entry.name == status.current_stage), None)
    if entry is None:
        waiting = find_condition(status, "Progressing")
        status.progress = waiting.reason if waiting else None
        return
    merging = " (merge)" if entry.step == "Merge" else ""
    said = entry.progress or (entry.reason or entry.phase if entry.phase != "Running" else "running")
    status.progress = f"{entry.name}{merging} {said}"[:192]


def objects(pipeline: Pipeline) -> list[models.Object]:
    """Everything the pipeline makes if each stage succeeds at once: what ``steerlm plan --output yaml`` shows."""
    made = surroundings.claim(pipeline)
    found = [made] if made else []
    found += [settings.config_map(pipeline), *surroundings.network_policies(pipeline)]
    for stage in pipeline.graph:
        urls: dict[str, str] = {
            need.role: servers.url(pipeline, names.server(pipeline.name, stage.name, need.role, 1)) for need in stage.servers
        }
        for need in stage.servers:
            found += servers.build(pipeline, stage, need, 1)
        found += work.build(pipeline, stage, 1, servers=urls)
        if stage.shards > 1:
            found += work.build(pipeline, stage, 1, servers={}, merge=True)
    if pipeline.manifest.spec.serve.enabled:
        found += servers.build_serve(pipeline, serving.planned_stage(pipeline))
    return found
