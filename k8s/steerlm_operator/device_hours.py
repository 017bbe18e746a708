"""How many devices (GPUs, most often) a pipeline's pods hold, and for how long they have held them. Pure."""

from __future__ import annotations

from nemo_steerlm.pipeline.cluster_status import DevicesStatus
from steerlm_operator import names
from steerlm_operator.draft import Draft
from steerlm_operator.models import Object, Pipeline

REFRESH_SECONDS = 600
"""How old the sum may become while devices are held; every write of a status costs a request."""


def count(draft: Draft) -> None:
    """Bring the sum up to date where the number of devices has changed, and now and then."""
    held = sum(_devices(draft.pipeline, pod) for pod in draft.pods() if _is_placed(pod))
    before = draft.status.devices or DevicesStatus()
    seconds = draft.seconds_since(before.since)
    if held == before.held and (not held or seconds < REFRESH_SECONDS):
        return
    hours = before.hours + before.held * max(seconds, 0.0) / 3600
    draft.status.devices = DevicesStatus(held=held, since=draft.timestamp(), hours=round(hours, 4))


def _is_placed(pod: Object) -> bool:
    """Whether a node keeps devices for the pod: from its placement on, while its image is pulled too, until it has ended."""
    status = pod.get("status", {})
    phase: str = status.get("phase", "Pending")
    if phase != "Pending":
        return phase == "Running"
    conditions = status.get("conditions") or ()
    return any(each.get("type") == "PodScheduled" and each.get("status") == "True" for each in conditions)


def _devices(pipeline: Pipeline, pod: Object) -> int:
    if pipeline.scheduling.device_resource in (None, "none"):
        return 0
    labels = pod["metadata"].get("labels") or {}
    component = labels.get(names.COMPONENT)
    if component == names.SERVE:
        serve = pipeline.manifest.spec.serve
        return 0 if serve.engine.external else serve.devices
    stage = next((stage for stage in pipeline.graph if stage.name == labels.get(names.STAGE)), None)
    if stage is None:
        return 0
    if component != names.SERVER:
        return stage.devices
    need = next((need for need in stage.servers if need.role == labels.get(names.ROLE)), None)
    return 0 if need is None or need.engine.external else need.devices
