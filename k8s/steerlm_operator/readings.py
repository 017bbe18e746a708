"""What Jobs, Deployments and their pods say, in the pipeline's words. Pure."""

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
        return Reading(state="Waiting", reason="AwaitingAdmission", message="the queue has not admitted it yet")
    return _read_active(pods, creation_failure, together)


def _read_active(pods: Sequence[Object], creation_failure: str, together: int) -> Reading:
    waiting = next((reading for pod in pods if (reading := _waits_for(pod))), None)
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
        ended = _terminated(pod)
        if ended and ended.get("exitCode") == 0 and (result := parse_result_line(ended.get("message", ""))):
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
        # A rank that lost another one fails too: the exit that is nobody's consequence is the first.
        return _exited(*endings[0])
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
        said = (refused["metadata"]["name"], *(refused["status"].get(key) for key in ("reason", "message")))
        return Reading(state="Failed", reason="JobFailed", message=shorten(": ".join(filter(None, said))))
    if reason != "BackoffLimitExceeded":
        return Reading(state="Failed", reason=reason, message=shorten(message))
    # A pod failed, and a pod that has failed stays for as long as its Job does: this one was deleted.
    return Reading(state="Lagging") if _just_ended(condition, now) else taken_away("it was deleted before it could say how it ended")


def taken_away(said: str) -> Reading:
    """Failed by somebody who deleted a pod, or took its node: not the stage's own fault."""
    return Reading(state="Failed", reason="Disrupted", message=shorten(f"a pod was taken away: {said}"), counted=False)


def _endings(pods: Sequence[Object]) -> list[tuple[Object, Object]]:
    """Pods that failed and how, the first one first; of the same second, those that nobody deleted."""
    found = [(pod, ended) for pod in pods if (ended := _terminated(pod)) and ended.get("exitCode") != 0]
    return sorted(found, key=lambda each: (each[1].get("finishedAt") or "", _deletion(each[0]) is not None))


def _deletion(pod: Object) -> datetime.datetime | None:
    """When somebody asked for a pod's deletion: its timestamp says when the time to end is over."""
    due = parse_time(pod["metadata"].get("deletionTimestamp"))
    return due - datetime.timedelta(seconds=pod["metadata"].get("deletionGracePeriodSeconds") or 0) if due else None


def _was_deleted(pod: Object, ended: Object) -> bool:
    """Whether a pod's end came of its deletion."""
    asked, finished = _deletion(pod), parse_time(ended.get("finishedAt"))
    return asked is not None and (finished is None or asked <= finished)


def _own_fault(endings: Sequence[tuple[Object, Object]]) -> Reading | None:
    """Failures that no disruption explains. Out of memory first: the pods beside it die of it."""
    if any(ended.get("reason") == "OOMKilled" for _, ended in endings):
        said = "killed for using more memory than its limit; raise spec.resources, or lower microBatchSize"
        return Reading(state="Failed", reason="OutOfMemory", message=said, permanent=True)
    return next((_exited(pod, ended) for pod, ended in endings if ended.get("exitCode") in PERMANENT_EXIT_CODES), None)


def _read_failed_shards(message: str, endings: Sequence[tuple[Object, Object]]) -> Reading:
    last = max(endings, key=lambda found: found[1].get("finishedAt") or "", default=None)
    if last is None:
        return Reading(state="Failed", reason="ShardsFailed", message=shorten(message), permanent=True)
    pod, ended = last
    why = _exited(pod, ended)
    # Each shard had retries of its own.
    return Reading(state="Failed", reason="ShardsFailed", message=shorten(f"shard {_index(pod)}: {why.message}"), permanent=True)


def _exited(pod: Object, ended: Object) -> Reading:
    said = " ".join((ended.get("message") or ended.get("reason") or "").strip().splitlines()[-1:])
    return _exit_reading(int(ended["exitCode"]), f"{pod['metadata']['name']}: {said}" if said else pod["metadata"]["name"])


def _exit_reading(code: int, said: str) -> Reading:
    if code in PERMANENT_EXIT_CODES:
        return Reading(state="Failed", reason=PERMANENT_REASONS[code], message=shorten(f"exit code {code}: {said}"), permanent=True)
    if code == EXIT_TERMINATED:
        return Reading(state="Failed", reason="Terminated", message=shorten(f"stopped from outside: {said}"), counted=False)
    reasons = {69: "ServerUnreachable", 75: "TryAgain", 137: "Killed"}
    return Reading(state="Failed", reason=reasons.get(code, "StageError"), message=shorten(f"exit code {code}: {said}"))


_IMAGE_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError", "RegistryUnavailable")


def _waits_for(pod: Object) -> Reading | None:
    """What a pod that does not run waits for, where that is more than its turn."""
    status = pod.get("status", {})
    for container in status.get("containerStatuses") or ():
        waiting = container.get("state", {}).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in _IMAGE_REASONS:
            said = f"image {container.get('image')} cannot be pulled: {message or reason}"
            return Reading(state="Waiting", reason="ImageNotAvailable", message=shorten(said), blocked=True)
        if reason == "CreateContainerConfigError":
            kind = "SecretNotFound" if "secret" in message else "ContainerConfigError"
            return Reading(state="Waiting", reason=kind, message=shorten(message), blocked=True)
    for condition in _pod_conditions(pod) if status.get("phase", "Pending") == "Pending" else ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            message = condition.get("message", "")
            if condition.get("reason") == "SchedulingGated":
                return Reading(state="Waiting", reason="AwaitingAdmission", message="its pods wait for admission")
            reason = "ClaimNotFound" if "persistentvolumeclaim" in message and "not found" in message else "Unschedulable"
            reason = "ClaimUnbound" if "unbound immediate PersistentVolumeClaims" in message else reason
            return Reading(state="Waiting", reason=reason, message=shorten(message), blocked=True)
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServersReading:
    """The state of a Deployment of inference servers."""

    ready: int = 0
    reason: str = "ServersStarting"
    message: str = "no server answers yet"
    failed: bool = False
    blocked: bool = False
    permanent: bool = False


def read_servers(deployment: Object, pods: Sequence[Object], now: datetime.datetime) -> ServersReading:
    """A Deployment and its pods. What cannot become well by itself has failed, however long a model may take to load."""
    status = deployment.get("status", {})
    ready = int(status.get("readyReplicas") or 0)
    if ready:
        return ServersReading(ready=ready, reason="ServersReady", message=f"{ready} of {deployment['spec'].get('replicas', 1)} answer")
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    refused = conditions.get("ReplicaFailure", {})
    if refused.get("status") == "True":
        reason, message = classify_refusal(403, refused.get("message", ""))
        return ServersReading(reason=reason, message=message, blocked=True)
    if failed := _server_failure(conditions.get("Progressing", {}), pods, now):
        return failed
    waiting = next((reading for pod in pods if (reading := _waits_for(pod))), None)
    return ServersReading(reason=waiting.reason, message=waiting.message, blocked=waiting.blocked) if waiting else ServersReading()


CRASHES = 3
"""Restarts of a server's container after which it is taken for broken."""
IMAGE_SECONDS = 600
"""How long an image may not be there before the attempt ends: whoever waits for it may hold a GPU."""


def _server_failure(progressing: Object, pods: Sequence[Object], now: datetime.datetime) -> ServersReading | None:
    endings = [(pod, ended) for pod in pods for ended in _last_endings(pod)]
    killed = next((pod for pod, ended in endings if ended.get("reason") == "OOMKilled"), None)
    if killed:
        said = f"{killed['metadata']['name']}: killed for using more memory than its limit; raise spec.resources.servers"
        return ServersReading(reason="OutOfMemory", message=said, failed=True, permanent=True)
    wrong = next((_exited(pod, ended) for pod, ended in endings if ended.get("exitCode") in PERMANENT_EXIT_CODES), None)
    if wrong:
        return ServersReading(reason=wrong.reason, message=wrong.message, failed=True, permanent=True)
    if crashing := next((pod for pod in pods if _crashes(pod) >= CRASHES), None):
        last = next((_exited(crashing, ended).message for ended in _last_endings(crashing)), crashing["metadata"]["name"])
        said = f"{_crashes(crashing)} crashes; the last one: {last}"
        return ServersReading(reason="ServersCrash", message=shorten(said), failed=True)
    for pod in pods:
        waits, since = _waits_for(pod), parse_time(pod.get("status", {}).get("startTime"))
        if waits and waits.reason == "ImageNotAvailable" and since and (now - since).total_seconds() > IMAGE_SECONDS:
            return ServersReading(reason=waits.reason, message=waits.message, failed=True)
    if progressing.get("reason") != "ProgressDeadlineExceeded":
        return None
    said = f"; the last one: {_exited(*endings[-1]).message}" if endings else ""
    return ServersReading(reason="ServersNotReady", message=shorten(f"no server answered in time{said}"), failed=True)


def _crashes(pod: Object) -> int:
    """How often a container that waits to be started again has ended; 0 where it runs."""
    containers = pod.get("status", {}).get("containerStatuses") or ()
    backing_off = (c for c in containers if (c.get("state", {}).get("waiting") or {}).get("reason") == "CrashLoopBackOff")
    return max((int(c.get("restartCount") or 0) for c in backing_off), default=0)


def _last_endings(pod: Object) -> list[Object]:
    states = [
        c.get(state, {}).get("terminated") for c in pod.get("status", {}).get("containerStatuses") or () for state in ("lastState", "state")
    ]
    return [ended for ended in states if ended]


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


def _terminated(pod: Object) -> Object | None:
    for container in pod.get("status", {}).get("containerStatuses") or ():
        ended: Object | None = container.get("state", {}).get("terminated")
        if ended:
            return ended
    return None


def _pod_conditions(pod: Object) -> Iterable[Object]:
    return pod.get("status", {}).get("conditions") or ()
