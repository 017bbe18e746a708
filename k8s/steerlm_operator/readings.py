"""What Jobs and their pods say, in the pipeline's words. Pure."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from nemo_steerlm.core.environment import parse_result_line
from nemo_steerlm.core.errors import EXIT_TERMINATED, PERMANENT_EXIT_CODES
from steerlm_operator import names
from steerlm_operator.models import Object

POD_LAG_SECONDS = 15
"""How long a finished Job is waited for to be joined by its pods in the watch caches, before what they said is taken for lost."""

AWAITING = "AwaitingAdmission"
"""Reason of what a queue has not admitted yet."""
PERMANENT_REASONS = {2: "WrongManifest", 65: "BadData", 78: "BadConfiguration"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """The state of one Job."""

    state: Literal["Waiting", "Running", "Lagging", "Succeeded", "Failed"]
    """Waiting: its pods do not run yet. Lagging: it ended, but the pods that say how are not in the cache yet."""
    reason: str = ""
    message: str = ""
    blocked: bool = False
    """Waiting for something that a person may have to do."""
    counted: bool = True
    """Failed: counts against the backoff limit."""
    permanent: bool = False
    """Failed: trying again will not help."""
    result: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Succeeded: what the stage reported, see ``parse_result_line``."""
    pod: str | None = None
    """Running: the pod whose output tells the progress."""
    taken: str | None = None
    """Running: a pod that somebody is deleting, before any pod has failed."""


def read_job(job: Object, pods: Sequence[Object], now: datetime.datetime, *, creation_failure: str = "", together: int = 1) -> Reading:
    """A Job and the pods of it that were seen.

    ``creation_failure`` is the last event about pods that could not be made; ``together`` is how many pods work only once all of them run.
    """
    conditions = {c["type"]: c for c in job.get("status", {}).get("conditions") or () if c.get("status") == "True"}
    if "Complete" in conditions:
        return _read_success(conditions["Complete"], pods, now)
    if "Failed" in conditions:
        return _read_failure(conditions["Failed"], pods, now)
    if "Suspended" in conditions or job.get("spec", {}).get("suspend"):
        return Reading(state="Waiting", reason=AWAITING, message="the queue has not admitted it yet")
    return _read_active(pods, creation_failure, together)


def _read_active(pods: Sequence[Object], creation_failure: str, together: int) -> Reading:
    waiting = next((reading for pod in pods if (reading := waits_for(pod))), None)
    if waiting:
        return waiting
    if not pods and creation_failure:
        reason, message = classify_refusal(403, creation_failure)
        return Reading(state="Waiting", reason=reason, message=message, blocked=True)
    running = [pod for pod in pods if pod.get("status", {}).get("phase") == "Running"]
    begun = [pod for pod in pods if pod.get("status", {}).get("phase", "Pending") != "Pending"]
    if not any(pod in running or pod["status"]["phase"] == "Succeeded" for pod in begun):
        return Reading(state="Waiting", reason="PodsStarting", message="its pods are starting")
    if len(begun) < together:
        return Reading(state="Waiting", reason="PodsStarting", message=f"{len(begun)} of {together} pods run, and wait for the others")
    first = min(running, key=_index, default=None)
    # Once a pod has failed, the Job controller deletes the others.
    taken = None if _endings(pods) else next((pod["metadata"]["name"] for pod in running if _deletion(pod)), None)
    return Reading(state="Running", pod=first["metadata"]["name"] if first else None, taken=taken)


def _index(pod: Object) -> int:
    return int((pod["metadata"].get("annotations") or {}).get(names.COMPLETION_INDEX) or 0)


def _read_success(condition: Object, pods: Sequence[Object], now: datetime.datetime) -> Reading:
    for pod in sorted(pods, key=_index):
        terminated = _terminated(pod)
        if terminated and terminated.get("exitCode") == 0 and (result := parse_result_line(terminated.get("message", ""))):
            return Reading(state="Succeeded", result=result)
    if _just_ended(condition, now) and not any(_terminated(pod) for pod in pods):
        return Reading(state="Lagging")
    return Reading(state="Succeeded")


def _just_ended(condition: Object, now: datetime.datetime) -> bool:
    ended_at = parse_time(condition.get("lastTransitionTime"))
    return ended_at is not None and (now - ended_at).total_seconds() < POD_LAG_SECONDS


_RULE_EXIT = re.compile(r"failed with exit code (\d+)")


def _read_failure(condition: Object, pods: Sequence[Object], now: datetime.datetime) -> Reading:
    """Why a Job failed. Its own message outlives its pods; the pods know more."""
    reason, message = condition.get("reason", ""), condition.get("message", "")
    endings = _endings(pods)
    if reason in ("FailedIndexes", "MaxFailedIndexesExceeded"):
        return _read_failed_shards(message, endings)
    if found := _own_fault(endings) or _disruption(message, pods, endings):
        return found
    if endings:
        # When one rank fails, the others fail because they lost it: the first exit is the cause.
        return exit_of(*endings[0])
    if rule := _RULE_EXIT.search(message):
        return _exit_reading(int(rule[1]), message)
    return _unexplained(condition, pods, now)


def _disruption(message: str, pods: Sequence[Object], endings: Sequence[tuple[Object, Object]]) -> Reading | None:
    """A pod that was taken away, where that is what ended the Job."""
    conditions = (c for pod in pods for c in _pod_conditions(pod))
    disrupted = next((c for c in conditions if c.get("type") == "DisruptionTarget" and c.get("status") == "True"), None)
    if disrupted or "DisruptionTarget" in message:
        return taken_away((disrupted or {}).get("message") or message)
    rule = _RULE_EXIT.search(message)
    if rule and int(rule[1]) == EXIT_TERMINATED:
        return _exit_reading(EXIT_TERMINATED, message)
    if endings and _was_deleted(*endings[0]):
        return taken_away(f"{endings[0][0]['metadata']['name']} was deleted")
    return None


def _unexplained(condition: Object, pods: Sequence[Object], now: datetime.datetime) -> Reading:
    """A failed Job none of whose pods says how it ended."""
    reason, message = condition.get("reason") or "JobFailed", condition.get("message") or "the Job failed"
    refused = next((pod for pod in pods if pod.get("status", {}).get("phase") == "Failed" and not _terminated(pod)), None)
    if refused:  # by its node, before its container ran
        parts = (refused["metadata"]["name"], *(refused["status"].get(key) for key in ("reason", "message")))
        return Reading(state="Failed", reason="JobFailed", message=shorten(": ".join(filter(None, parts))))
    if reason != "BackoffLimitExceeded":
        return Reading(state="Failed", reason=reason, message=shorten(message))
    # A pod failed, and a pod that has failed stays for as long as its Job does: this one was deleted.
    return Reading(state="Lagging") if _just_ended(condition, now) else taken_away("it was deleted before it could say how it ended")


def taken_away(detail: str) -> Reading:
    """Failed by somebody who deleted a pod, or took its node: not the stage's own fault."""
    return Reading(state="Failed", reason="Disrupted", message=shorten(f"a pod was taken away: {detail}"), counted=False)


def _endings(pods: Sequence[Object]) -> list[tuple[Object, Object]]:
    """Pods that failed and how, the first one first; of the same second, those that nobody deleted."""
    found = [(pod, terminated) for pod in pods if (terminated := _terminated(pod)) and terminated.get("exitCode") != 0]
    return sorted(found, key=lambda each: (each[1].get("finishedAt") or "", _deletion(each[0]) is not None))


def _deletion(pod: Object) -> datetime.datetime | None:
    """When somebody asked for a pod's deletion: its timestamp says when the time to end is over."""
    due = parse_time(pod["metadata"].get("deletionTimestamp"))
    return due - datetime.timedelta(seconds=pod["metadata"].get("deletionGracePeriodSeconds") or 0) if due else None


def _was_deleted(pod: Object, terminated: Object) -> bool:
    """Whether a pod's end came of its deletion."""
    asked, finished = _deletion(pod), parse_time(terminated.get("finishedAt"))
    return asked is not None and (finished is None or asked <= finished)


def _own_fault(endings: Sequence[tuple[Object, Object]]) -> Reading | None:
    """Failures that no disruption explains. Out of memory first: the pods beside it die of it."""
    if any(terminated.get("reason") == "OOMKilled" for _, terminated in endings):
        message = "killed for using more memory than its limit; raise spec.resources, or lower microBatchSize"
        return Reading(state="Failed", reason="OutOfMemory", message=message, permanent=True)
    return next((exit_of(pod, terminated) for pod, terminated in endings if terminated.get("exitCode") in PERMANENT_EXIT_CODES), None)


def _read_failed_shards(message: str, endings: Sequence[tuple[Object, Object]]) -> Reading:
    last = max(endings, key=lambda found: found[1].get("finishedAt") or "", default=None)
    if last is None:
        return Reading(state="Failed", reason="ShardsFailed", message=shorten(message), permanent=True)
    pod, terminated = last
    why = exit_of(pod, terminated)
    # Each shard had retries of its own.
    return Reading(state="Failed", reason="ShardsFailed", message=shorten(f"shard {_index(pod)}: {why.message}"), permanent=True)


def exit_of(pod: Object, terminated: Object) -> Reading:
    """How a container ended, by its exit code and the last line that it left."""
    last_line = " ".join((terminated.get("message") or terminated.get("reason") or "").strip().splitlines()[-1:])
    return _exit_reading(int(terminated["exitCode"]), f"{pod['metadata']['name']}: {last_line}" if last_line else pod["metadata"]["name"])


def _exit_reading(code: int, detail: str) -> Reading:
    if code in PERMANENT_EXIT_CODES:
        return Reading(state="Failed", reason=PERMANENT_REASONS[code], message=shorten(f"exit code {code}: {detail}"), permanent=True)
    if code == EXIT_TERMINATED:
        return Reading(state="Failed", reason="Terminated", message=shorten(f"stopped from outside: {detail}"), counted=False)
    reasons = {69: "ServerUnreachable", 75: "TryAgain", 137: "Killed"}
    return Reading(state="Failed", reason=reasons.get(code, "StageError"), message=shorten(f"exit code {code}: {detail}"))


_IMAGE_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError", "RegistryUnavailable")


def waits_for(pod: Object) -> Reading | None:
    """What a pod that does not run waits for, where that is more than its turn."""
    status = pod.get("status", {})
    for container in containers_of(pod):
        waiting = container.get("state", {}).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in _IMAGE_REASONS:
            cause = f"image {container.get('image')} cannot be pulled: {message or reason}"
            return Reading(state="Waiting", reason="ImageNotAvailable", message=shorten(cause), blocked=True)
        if reason == "CreateContainerConfigError":
            kind = "SecretNotFound" if "secret" in message else "ContainerConfigError"
            return Reading(state="Waiting", reason=kind, message=shorten(message), blocked=True)
    if is_gated(pod):
        return Reading(state="Waiting", reason=AWAITING, message="its pods wait for admission")
    for condition in _pod_conditions(pod) if status.get("phase", "Pending") == "Pending" else ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            message = condition.get("message", "")
            reason = "ClaimNotFound" if "persistentvolumeclaim" in message and "not found" in message else "Unschedulable"
            reason = "ClaimUnbound" if "unbound immediate PersistentVolumeClaims" in message else reason
            return Reading(state="Waiting", reason=reason, message=shorten(message), blocked=True)
    return None


def is_gated(pod: Object) -> Object | None:
    """The condition of a pod that a queue has not admitted; None where one has, or none has to."""
    conditions = _pod_conditions(pod) if pod.get("status", {}).get("phase", "Pending") == "Pending" else ()
    return next((c for c in conditions if c.get("type") == "PodScheduled" and c.get("reason") == "SchedulingGated"), None)


_REFUSED_WORDS = {
    "exceeded quota": "QuotaExceeded",
    "must specify limits": "QuotaExceeded",
    "violates PodSecurity": "AdmissionRefused",
    "admission webhook": "AdmissionRefused",
    "ValidatingAdmissionPolicy": "AdmissionRefused",
    "is being terminated": "NamespaceTerminating",
    "Only one reference can have Controller set to true": "NameConflict",
}
_REFUSED_STATUS = {400: "InvalidObject", 403: "Forbidden", 404: "KindNotInstalled", 409: "NameConflict", 422: "InvalidObject"}


def classify_refusal(status: int, message: str) -> tuple[str, str]:
    """A reason and a sentence for what the API server refused."""
    known = next((reason for words, reason in _REFUSED_WORDS.items() if words in message), None)
    return known or _REFUSED_STATUS.get(status, "ServerError"), shorten(" ".join(message.split()))


def completed(indexes: str) -> int:
    """How many indexes ``0-3,7`` names."""
    count = 0
    for part in indexes.split(",") if indexes else ():
        first, dash, last = part.partition("-")
        count += int(last) - int(first) + 1 if dash else 1
    return count


def flat_metrics(metrics: Any, limit: int = 32) -> dict[str, str]:
    """Nested numbers and words as ``a.b: "1.25"``, the first ``limit`` of them."""
    found: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), item)
        elif isinstance(value, str | int | float) and len(found) < limit and len(prefix) <= 128:
            found[prefix] = (f"{value:.6g}" if isinstance(value, float) else str(value))[:64]

    walk("", metrics)
    return found


def last_progress(text: str) -> dict[str, Any] | None:
    """The last progress message in a process's output."""
    for line in reversed(text.splitlines()):
        start = line.find('{"steerlm"')
        if start < 0:
            continue
        with contextlib.suppress(ValueError):
            message = json.loads(line[start:])
            if message.get("steerlm") == "progress":
                return dict(message)
    return None


def parse_time(text: str | None) -> datetime.datetime | None:
    """An RFC 3339 time."""
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None


def shorten(text: str, limit: int = 700) -> str:
    """``text`` within the room a condition's message has."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def containers_of(pod: Object) -> list[Object]:
    """The states of a pod's containers, the engine's first."""
    status = pod.get("status", {})
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _terminated(pod: Object) -> Object | None:
    for container in pod.get("status", {}).get("containerStatuses") or ():
        terminated: Object | None = container.get("state", {}).get("terminated")
        if terminated:
            return terminated
    return None


def _pod_conditions(pod: Object) -> Iterable[Object]:
    return pod.get("status", {}).get("conditions") or ()
