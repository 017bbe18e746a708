"""A stand-in for nodes: sets pods' status as a kubelet would, from what a test says their processes do. No process runs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import kubernetes

from tests.cluster.pipelines import Namespace

Play = dict[str, Any]
"""``exit`` and ``message`` of a process, or ``waiting`` with a reason, or ``running``; empty ``phase``s are a real kubelet's business."""
DONE = {"exit": 0, "message": json.dumps({"cached": False, "inputHash": "a" * 64, "metrics": {"loss": 1.5}})}
CACHED = {"exit": 0, "message": json.dumps({"cached": True, "inputHash": "c" * 64, "metrics": {}})}
EVALUATED = {"exit": 0, "message": json.dumps({"cached": False, "inputHash": "b" * 64, "metrics": {"best": "bootstrap-1-train"}})}
RUNNING: Play = {"running": True}
SERVER_COMPONENTS = ("server", "serve")


def stage_of(pod: Any) -> str:
    """The stage a pod belongs to; empty for the server that stays."""
    return str(pod.metadata.labels.get("steerlm.dev/stage", ""))


def component_of(pod: Any) -> str:
    """``work``, ``server`` or ``serve``."""
    return str(pod.metadata.labels["steerlm.dev/component"])


def job_of(pod: Any) -> str:
    """The Job a pod belongs to."""
    return str(pod.metadata.labels.get("batch.kubernetes.io/job-name", ""))


def index_of(pod: Any) -> str:
    """Rank or shard."""
    return str((pod.metadata.annotations or {}).get("batch.kubernetes.io/job-completion-index", ""))


class Kubelet(threading.Thread):
    """``behaves(pod)`` says what a pod's process does; None leaves it pending. Servers that are not None answer at once."""

    def __init__(self, namespace: Namespace, behaves: Callable[[Any], Play | None] = lambda _: DONE) -> None:
        super().__init__(daemon=True)
        self.namespace, self.behaves = namespace, behaves
        self.stopped = threading.Event()
        self.seen: list[str] = []
        self._played: set[str] = set()

    def run(self) -> None:
        """Watch until stopped; a server that goes away meanwhile is tried again."""
        core = self.namespace.core
        while not self.stopped.is_set():
            try:
                for event in kubernetes.watch.Watch().stream(
                    core.list_namespaced_pod, self.namespace.name, resource_version="0", timeout_seconds=3
                ):
                    pod = event["object"]
                    fresh = pod.status.phase == "Pending" and not pod.metadata.deletion_timestamp and pod.metadata.uid not in self._played
                    if event["type"] != "DELETED" and fresh:
                        self.play(pod, self.behaves(pod))
                    if self.stopped.is_set():
                        break
            except (OSError, kubernetes.client.ApiException, kubernetes.client.rest.urllib3.exceptions.HTTPError, ValueError) as error:
                if getattr(error, "status", 0) not in (0, 404, 409, 410, 429, 500, 503):
                    raise

    def play(self, pod: Any, does: Play | None) -> None:
        """Make a pod do something now."""
        if does is None:
            return
        self.seen.append(pod.metadata.name)
        self._patch(pod, status_of(pod, does))
        self._played.add(pod.metadata.uid)

    def _patch(self, pod: Any, status: dict[str, Any]) -> None:
        try:
            self.namespace.core.patch_namespaced_pod_status(pod.metadata.name, self.namespace.name, {"status": status})
        except kubernetes.client.ApiException as error:
            if error.status != 404:
                raise


def status_of(pod: Any, does: Play) -> dict[str, Any]:
    """The status a kubelet would report."""
    container = {"name": "main", "image": pod.spec.containers[0].image, "imageID": "x", "restartCount": does.get("restarts", 0)}
    if "waiting" in does:
        last = {"lastState": {"terminated": does["last"]}} if "last" in does else {}
        return {"phase": "Pending", "containerStatuses": [{**container, **last, "ready": False, "state": {"waiting": does["waiting"]}}]}
    if "running" in does or component_of(pod) in SERVER_COMPONENTS:
        ready = [{"type": kind, "status": "True"} for kind in ("Ready", "ContainersReady", "Initialized", "PodScheduled")]
        running = {**container, "ready": True, "started": True, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
        return {"phase": "Running", "conditions": ready, "containerStatuses": [running]}
    ended = {
        "exitCode": does["exit"],
        "reason": does.get("reason", "Error" if does["exit"] else "Completed"),
        "message": does.get("message", ""),
    }
    status: dict[str, Any] = {"phase": "Failed" if does["exit"] else "Succeeded"}
    status["containerStatuses"] = [{**container, "ready": False, "state": {"terminated": ended}}]
    if does.get("disrupted"):
        status["conditions"] = [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "preempted"}]
    return status
