"""Bringing one stage forward: its servers, its Job, what became of it, and whether to try again. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from nemo_steerlm.core.errors import UnavailableError
from nemo_steerlm.core.processes import LAUNCHER_SECONDS
from nemo_steerlm.pipeline.cluster_status import AnnotationStatus, StageStatus
from nemo_steerlm.pipeline.stages import Stage
from steerlm_operator import admission, names, retries, storage
from steerlm_operator.draft import Draft, find_condition
from steerlm_operator.models import Object
from steerlm_operator.readings import AWAITING, Reading, completed, flat_metrics, is_gated, parse_time, read_job, shorten, taken_away
from steerlm_operator.resources import servers, work
from steerlm_operator.server_readings import ServersReading, read_servers

STOP_SECONDS = "stop_seconds"
"""Of a training's progress: how long it has taken at most to end a step and save."""
IN_PART = "AdmittedInPart"
"""Reason of a stage that gave back what a queue had admitted of it, as the rest was not admitted."""
POD_DELETED = "PodDeleted"
"""Reason of a running stage: somebody deletes a pod of it. Whatever the other pods make of that counts no failure."""


def advance(draft: Draft, stage: Stage, entry: StageStatus) -> bool:
    """Do what can be done for a stage now. Returns whether it is done."""
    if entry.phase == "Retrying":
        due = parse_time(entry.next_attempt_time)
        if due and due > draft.now:
            draft.look_again((due - draft.now).total_seconds())
            return False
    if entry.phase in ("Pending", "Retrying"):
        _begin(draft, stage, entry)
    merge = entry.step == "Merge"
    urls = {} if merge else _ensure_servers(draft, stage, entry)
    if urls is None:
        return False
    job = draft.own("Job", work.job_name(draft.pipeline, stage, entry.attempt, merge=merge))
    _want_work(draft, stage, entry, urls, job)
    if job is None:
        _wait_for_objects(draft, stage, entry)
        return False
    if stage.kind == "annotate" and not merge:
        _count_shards(draft, stage, job)
    name = job["metadata"]["name"]
    pods = draft.job_pods(job)
    failure = draft.observed.creation_failures.get(name, "")
    reading = read_job(job, pods, draft.now, creation_failure=failure, together=1 if merge else stage.parallel.nodes)
    if reading.reason == AWAITING:
        reading = dataclasses.replace(reading, message=f"{reading.message}{draft.queue_said(job)}")
    elif not pods and reading.state == "Waiting":
        draft.inspect.append(name)
        draft.look_again(5)
    return _act_on(draft, stage, entry, reading)


def _begin(draft: Draft, stage: Stage, entry: StageStatus) -> None:
    entry.attempt += 1
    entry.spec_hash = stage.spec_hash()
    entry.phase = "Queued"
    if entry.reason == IN_PART:  # it has waited since the attempt before, unless it was suspended meanwhile
        entry.start_time = max(entry.start_time or "", draft.status.start_time or "")
    else:
        entry.start_time = draft.timestamp()
    entry.reason, entry.message = "Starting", "its objects are being made"
    entry.completion_time = entry.next_attempt_time = entry.progress = None
    draft.drop_condition("CheckpointFits")
    if not entry.disruptions:
        draft.drop_condition("Advancing")
    again = f", attempt {entry.attempt}" if entry.attempt > 1 else ""
    draft.event("StageStarted", f"{stage.name} started{again}")


def _ensure_servers(draft: Draft, stage: Stage, entry: StageStatus) -> dict[str, str] | None:
    """The servers' addresses by role once one of each role answers (or the work has begun), else None."""
    pipeline = draft.pipeline
    urls: dict[str, str] = {}
    pending = []
    for need in stage.servers:
        draft.want(*servers.build(pipeline, stage, need, entry.attempt))
        name = names.server(pipeline.name, stage.name, need.role, entry.attempt)
        urls[need.role] = servers.url(pipeline, name)
        reading = _read_role(draft, stage, entry, need.role, name)
        refusal = draft.observed.refusals.get(("Deployment", name)) or draft.observed.refusals.get(("Service", name))
        if stage.kind == "annotate":
            labels = servers.labels(pipeline, stage, need, 0)
            del labels[names.ATTEMPT]
            selector = ",".join(f"{key}={value}" for key, value in sorted(servers.selector(labels).items()) if key != names.PIPELINE_UID)
            draft.status.annotation = (draft.status.annotation or AnnotationStatus()).model_copy(
                update={"servers_ready": reading.ready, "selector": selector}
            )
        if not reading.ready:
            pending.append((need.role, reading, refusal))
    if not stage.servers:
        return urls
    draft.status.endpoints = dict(urls)
    if not pending:
        draft.condition("ServersReady", True, "ServersReady", f"the servers of {stage.name} answer")
        return urls
    role, reading, refusal = pending[0]
    reason, message = (refusal.reason, refusal.message) if refusal else (reading.reason, reading.message)
    draft.condition("ServersReady", False, reason, f"{role} servers of {stage.name}: {message}")
    if draft.own("Job", work.job_name(pipeline, stage, entry.attempt)):
        return urls  # its clients wait for the servers to come back, and fail if they do not
    if reading.failed:
        _fail_stage(draft, stage, entry, Reading(state="Failed", reason=reading.reason, message=message, permanent=reading.permanent))
        return None
    if refusal:
        draft.look_again(storage.wait(refusal))
    waits = next((f"{who} servers: {what.message}" for who, what, _ in pending if what.reason == AWAITING), None)
    if waits and _gives_back(draft, stage, entry, waits):
        return None
    _queue(draft, stage, entry, reason, f"{role} servers: {message}", blocked=reading.blocked or refusal is not None)
    return None


def _read_role(draft: Draft, stage: Stage, entry: StageStatus, role: str, name: str) -> ServersReading:
    pods = draft.pods(stage=stage.name, attempt=str(entry.attempt), component=names.SERVER, role=role)
    reading = read_servers(draft.own("Deployment", name) or {}, pods, draft.now)
    if reading.reason != AWAITING:
        return reading
    said = draft.queue_said(next(pod for pod in pods if is_gated(pod)))
    return dataclasses.replace(reading, message=f"{reading.message}{said}")


def _want_work(draft: Draft, stage: Stage, entry: StageStatus, urls: Mapping[str, str], job: Object | None) -> None:
    merge = entry.step == "Merge"
    objects = work.build(draft.pipeline, stage, entry.attempt, servers=urls, salt=entry.restart_token, merge=merge)
    if job is None:
        draft.want(*objects)
    # Not applied again: the Job keeps what it was made with, whatever the spec says by now.
    draft.wanted.update((wanted["kind"], wanted["metadata"]["name"]) for wanted in objects)
    draft.wanted.add(("Job", work.job_name(draft.pipeline, stage, entry.attempt, merge=merge)))


def _wait_for_objects(draft: Draft, stage: Stage, entry: StageStatus) -> None:
    refusal = next((draft.observed.refusals[key] for key in sorted(draft.wanted) if key in draft.observed.refusals), None)
    if refusal is None:
        _queue(draft, stage, entry, "Starting", "its objects are being made")
    elif refusal.reason == "InvalidObject":
        _fail_stage(draft, stage, entry, Reading(state="Failed", reason=refusal.reason, message=refusal.message, permanent=True))
    else:
        draft.look_again(storage.wait(refusal))
        _queue(draft, stage, entry, refusal.reason, refusal.message, blocked=True)


def _count_shards(draft: Draft, stage: Stage, job: Object) -> None:
    status = job.get("status", {})
    succeeded = completed(status.get("completedIndexes") or "") if stage.shards > 1 else int(status.get("succeeded") or 0)
    draft.status.annotation = (draft.status.annotation or AnnotationStatus()).model_copy(
        update={"shards": stage.shards, "succeeded": succeeded, "failed_indexes": status.get("failedIndexes") or None}
    )


def _act_on(draft: Draft, stage: Stage, entry: StageStatus, reading: Reading) -> bool:
    deleted = entry.reason == POD_DELETED
    if reading.state == "Lagging" or (deleted and reading.state == "Waiting"):
        draft.look_again(2)
    elif reading.state == "Waiting":
        if reading.reason == "SecretNotFound":
            draft.condition("SecretsAvailable", False, reading.reason, reading.message)
        if reading.reason == AWAITING and _gives_back(draft, stage, entry, f"its client: {reading.message}"):
            return False
        _queue(draft, stage, entry, reading.reason, reading.message, blocked=reading.blocked)
    elif reading.state == "Running":
        _note_running(draft, stage, entry, reading)
    elif reading.state == "Failed" and _lost_its_servers(draft, reading):
        _fail_stage(draft, stage, entry, taken_away("the queue took back the servers that its client asked"))
    elif reading.state == "Failed":
        _fail_stage(draft, stage, entry, taken_away(entry.message or "") if deleted and not reading.permanent else reading)
    elif stage.shards > 1 and entry.step == "Work":
        entry.step = "Merge"
        entry.progress = f"{stage.shards}/{stage.shards} shards"  # the last may have ended since anybody counted
        _release_servers(draft)
        return advance(draft, stage, entry)
    else:
        _succeed(draft, stage, entry, reading.result)
        return True
    return False


def _queue(draft: Draft, stage: Stage, entry: StageStatus, reason: str, message: str, *, blocked: bool = False) -> None:
    entry.phase = "Queued"
    entry.reason, entry.message = reason, shorten(message)
    limit = draft.pipeline.run_policy.pending_deadline_seconds
    waited = draft.seconds_since(entry.start_time)
    if limit is not None and waited >= limit:
        late = f"not started within {limit} s: {message}"
        _fail_stage(draft, stage, entry, Reading(state="Failed", reason="PendingDeadlineExceeded", message=late, permanent=True))
        return
    if limit is not None:
        draft.look_again(limit - waited)
    draft.condition("Progressing", not blocked, reason, f"{stage.name}: {message}")


def _lost_its_servers(draft: Draft, reading: Reading) -> bool:
    """Whether a client gave up on servers that a queue had taken back for somebody else."""
    ready = find_condition(draft.status, "ServersReady")
    return ready is not None and ready.reason == AWAITING and f"exit code {UnavailableError.exit_code}:" in reading.message


def _gives_back(draft: Draft, stage: Stage, entry: StageStatus, message: str) -> bool:
    """Whether a stage has held a part of what it needs for too long while the rest waits, and so gives it back and pauses."""
    job = draft.own("Job", work.job_name(draft.pipeline, stage, entry.attempt, merge=entry.step == "Merge"))
    held = admission.seconds_held(draft.pods(stage=stage.name, attempt=str(entry.attempt)), job, draft.now)
    if held is None:
        return False
    limit = draft.pipeline.config.admission_seconds
    if held < limit:
        draft.look_again(limit - held)
        return False
    delay = admission.pause(draft.pipeline.uid, entry.attempt, limit)
    _release_servers(draft)
    entry.phase, entry.reason, entry.progress = "Retrying", IN_PART, None
    entry.message = shorten(
        f"the queue admitted only a part of it within {limit:g} s, which is given back for a while; it waited for {message}; "
        "give the queue room for the stage's servers and its client together"
    )
    entry.next_attempt_time = draft.timestamp(after=delay)
    draft.look_again(delay)
    draft.condition("Progressing", True, IN_PART, f"{stage.name}: {entry.message}")
    draft.event(IN_PART, f"{stage.name}, attempt {entry.attempt}: {entry.message}", warning=True)
    return True


def _note_running(draft: Draft, stage: Stage, entry: StageStatus, reading: Reading) -> None:
    before = entry.progress
    if entry.phase != "Running":
        entry.progress_time = draft.timestamp()
    entry.phase = "Running"
    sharded = stage.shards > 1 and entry.step == "Work"
    if reading.taken and not sharded:  # a shard is tried again inside its Job
        entry.reason, entry.message = POD_DELETED, f"{reading.taken} is being deleted"
    elif entry.reason != POD_DELETED:
        entry.reason = entry.message = None
    if sharded:
        annotation = draft.status.annotation or AnnotationStatus()
        entry.progress = f"{annotation.succeeded}/{stage.shards} shards"
    elif reading.pod:
        draft.watch.append(reading.pod)
        if progress := draft.observed.progress.get(reading.pod):
            entry.progress = describe_progress(progress)
            _compare_grace(draft, stage, progress)
            retries.note_progress(draft, stage, entry, progress)
        if entry.progress != before:
            entry.progress_time = draft.timestamp()
        if _has_stalled(draft, stage, entry):
            return
    if draft.pipeline.secrets.wandb or draft.pipeline.secrets.hugging_face:
        draft.condition("SecretsAvailable", True, "SecretsFound", "the pods got them")
    draft.condition("Progressing", True, "StageRunning", f"{stage.name}, attempt {entry.attempt}")


def _has_stalled(draft: Draft, stage: Stage, entry: StageStatus) -> bool:
    """A stage that says nothing new for too long is ended and tried again: a collective that hangs does so for ever."""
    limit = draft.pipeline.run_policy.stall_seconds
    if limit is None:
        return False
    silent = draft.seconds_since(entry.progress_time)
    if silent < limit:
        draft.look_again(limit - silent)
        return False
    message = f"no progress within {limit} s" + (f" after {entry.progress}" if entry.progress else "")
    _fail_stage(draft, stage, entry, Reading(state="Failed", reason="NoProgress", message=message, counted=False))
    return True


def _compare_grace(draft: Draft, stage: Stage, progress: Mapping[str, Any]) -> None:
    """Whether a training that is stopped has the time to save, by what it measured."""
    needed = progress.get(STOP_SECONDS)
    if not isinstance(needed, int | float):
        return
    grace = draft.pipeline.grace_seconds
    if needed <= grace - LAUNCHER_SECONDS:
        draft.condition("CheckpointFits", True, "SavesInTime", f"{stage.name} ends and saves within {grace} s")
        return
    message = (
        f"{stage.name} takes {needed:.0f} s to end a step and save, and has {grace} s, of which its processes need {LAUNCHER_SECONDS:.0f}: "
        "an interruption loses what came after the last checkpoint; raise runPolicy.gracePeriodSeconds, or set saveEveryMinutes"
    )
    if (before := find_condition(draft.status, "CheckpointFits")) is None or before.status == "True":
        draft.event("GraceTooShort", message, warning=True)
    draft.condition("CheckpointFits", False, "GraceTooShort", message)


def describe_progress(message: Mapping[str, Any]) -> str:
    """``412/1000 loss 1.83`` from a stage's progress message."""
    parts = [f"{message.get('done', '?')}/{message.get('total', '?')}"]
    for key, value in message.items():
        if key not in ("steerlm", "stage", "done", "total", STOP_SECONDS, retries.SAVED) and isinstance(value, int | float | str):
            parts.append(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}")
    return " ".join(parts)[:128]


def _succeed(draft: Draft, stage: Stage, entry: StageStatus, result: Mapping[str, Any]) -> None:
    cached = bool(result.get("cached"))
    entry.phase = "CacheHit" if cached else "Succeeded"
    entry.reason = entry.message = entry.progress = None
    entry.completion_time = draft.timestamp()
    entry.input_hash = str(result["inputHash"])[:64] if "inputHash" in result else None
    entry.metrics = flat_metrics(result.get("metrics")) or None
    draft.drop_condition("Advancing")
    _release_servers(draft)
    draft.event("StageCacheHit" if cached else "StageSucceeded", f"{stage.name} {'was done before' if cached else 'is done'}")


def _fail_stage(draft: Draft, stage: Stage, entry: StageStatus, reading: Reading) -> None:
    pipeline = draft.pipeline
    reading = retries.count(draft, entry, reading)
    entry.reason, entry.message, entry.progress = reading.reason, shorten(reading.message), None
    entry.completion_time = draft.timestamp()
    _release_servers(draft)
    if reading.permanent or entry.counted_failures > pipeline.backoff_limit:
        entry.phase = "Failed"
        draft.event("StageFailed", f"{stage.name}, attempt {entry.attempt}: {reading.reason}: {reading.message}", warning=True)
        return
    delay = retries.delay(draft, entry, counted=reading.counted)
    retries.report_no_progress(draft, entry, reading)
    entry.phase = "Retrying"
    entry.next_attempt_time = draft.timestamp(after=delay)
    draft.look_again(delay)
    counted = "" if reading.counted else " (not counted)"
    message = f"{stage.name}, attempt {entry.attempt}: {reading.reason}{counted}: {reading.message}"
    draft.condition("Progressing", True, "StageRetrying", message)
    draft.event("StageRetrying", message, warning=True)


def _release_servers(draft: Draft) -> None:
    """The stage's servers are not needed any longer."""
    released = {key for key in draft.wanted if key[0] in ("Deployment", "Service", "Job", "JobSet", "PodGroup")}
    draft.wanted -= released
    draft.apply = [wanted for wanted in draft.apply if (wanted["kind"], wanted["metadata"]["name"]) not in released]
    if draft.status.annotation:
        draft.status.annotation.servers_ready = 0
    draft.status.endpoints = None
    draft.drop_condition("ServersReady")
