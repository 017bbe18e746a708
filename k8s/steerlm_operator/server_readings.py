"""What Deployments of inference servers and their pods say, in the pipeline's words. Pure."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence

from nemo_steerlm.core.errors import PERMANENT_EXIT_CODES
from steerlm_operator.models import Object
from steerlm_operator.readings import classify_refusal, containers_of, exit_of, is_gated, parse_time, shorten, waits_for


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
    late = conditions.get("Progressing", {}).get("reason") == "ProgressDeadlineExceeded" and _were_starting(deployment, pods, now)
    if failed := _server_failure(pods, now, late=late):
        return failed
    admitted = [pod for pod in pods if not is_gated(pod)]
    waiting = next((reading for pod in admitted or pods if (reading := waits_for(pod))), None)
    return ServersReading(reason=waiting.reason, message=waiting.message, blocked=waiting.blocked) if waiting else ServersReading()


CRASHES = 3
"""Restarts of a server's container after which it is taken for broken."""
IMAGE_SECONDS = 600
"""How long an image may not be there before the attempt ends: whoever waits for it may hold a GPU."""


def _were_starting(deployment: Object, pods: Sequence[Object], now: datetime.datetime) -> bool:
    """Whether the time was theirs to start: a Deployment also counts that in which a queue or a scheduler has no place for its pods."""
    most = deployment["spec"].get("progressDeadlineSeconds", 0)
    begun = [parse_time(pod.get("status", {}).get("startTime")) for pod in pods]
    return not pods or any(since is not None and (now - since).total_seconds() >= most for since in begun)


def _server_failure(pods: Sequence[Object], now: datetime.datetime, *, late: bool) -> ServersReading | None:
    endings = [(pod, terminated) for pod in pods for terminated in _last_endings(pod)]
    killed = next((pod for pod, terminated in endings if terminated.get("reason") == "OOMKilled"), None)
    if killed:
        message = f"{killed['metadata']['name']}: killed for using more memory than its limit; raise spec.resources.servers"
        return ServersReading(reason="OutOfMemory", message=message, failed=True, permanent=True)
    wrong = next((exit_of(pod, terminated) for pod, terminated in endings if terminated.get("exitCode") in PERMANENT_EXIT_CODES), None)
    if wrong:
        return ServersReading(reason=wrong.reason, message=wrong.message, failed=True, permanent=True)
    if crashing := next((pod for pod in pods if _crashes(pod) >= CRASHES), None):
        last = next((exit_of(crashing, terminated).message for terminated in _last_endings(crashing)), crashing["metadata"]["name"])
        message = f"{_crashes(crashing)} crashes; the last one: {last}"
        return ServersReading(reason="ServersCrash", message=shorten(message), failed=True)
    for pod in pods:
        waits, since = waits_for(pod), parse_time(pod.get("status", {}).get("startTime"))
        if waits and waits.reason == "ImageNotAvailable" and since and (now - since).total_seconds() > IMAGE_SECONDS:
            return ServersReading(reason=waits.reason, message=waits.message, failed=True)
    if not late:
        return None
    last = f"; the last one: {exit_of(*endings[-1]).message}" if endings else ""
    return ServersReading(reason="ServersNotReady", message=shorten(f"no server answered in time{last}"), failed=True)


def _crashes(pod: Object) -> int:
    """How often a container that waits to be started again has ended; 0 where it runs."""
    backing_off = (c for c in containers_of(pod) if (c.get("state", {}).get("waiting") or {}).get("reason") == "CrashLoopBackOff")
    return max((int(c.get("restartCount") or 0) for c in backing_off), default=0)


def _last_endings(pod: Object) -> list[Object]:
    states = [c.get(state, {}).get("terminated") for c in containers_of(pod) for state in ("lastState", "state")]
    return [terminated for terminated in states if terminated]
