"""What a queue has let in of a stage, and what it has not. Pure.

Kueue admits each server's pod and the client's Job by itself. A stage that got only some of them holds quota which another stage may wait
for that holds the rest, and neither would ever go on. So a part is given back after a while, and everything is asked for again later.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterable

from steerlm_operator.models import Object
from steerlm_operator.readings import is_gated, parse_time


def seconds_held(pods: Iterable[Object], job: Object | None, now: datetime.datetime) -> float | None:
    """How long some of a stage's pods have been admitted while others, or its Job, wait; None where that is not so."""
    living = [
        pod for pod in pods if not (pod["metadata"].get("deletionTimestamp") or pod["status"].get("phase") in ("Succeeded", "Failed"))
    ]
    gates = [is_gated(pod) for pod in living]
    waiting = [gate.get("lastTransitionTime") for gate in gates if gate]
    if job and (suspended := _suspension(job)):
        waiting.append(suspended.get("lastTransitionTime"))
    held = [pod["status"].get("startTime") for pod, gate in zip(living, gates, strict=True) if not gate]
    held = [started for started in held if started]  # one that no node has yet holds no GPU
    if not (held and waiting):
        return None
    since = max(filter(None, (parse_time(time) for time in (min(filter(None, waiting), default=None), *held))))
    return (now - since).total_seconds()


def _suspension(job: Object) -> Object | None:
    conditions: list[Object] = job.get("status", {}).get("conditions") or []
    return next((c for c in conditions if c["type"] == "Suspended" and c.get("status") == "True"), None)


def pause(uid: str, attempt: int, seconds: float) -> float:
    """How long to ask for nothing: another time for each pipeline and attempt, or two would take from each other forever."""
    digest = hashlib.sha256(f"{uid} {attempt}".encode()).digest()
    return seconds * (0.5 + digest[0] / 256)
