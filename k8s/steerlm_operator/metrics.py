"""Prometheus metrics."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from nemo_steerlm.pipeline.cluster_status import PipelineStatus

PIPELINES = Gauge("steerlm_pipelines", "Pipelines by phase.", ["namespace", "phase"])
STAGE_ATTEMPTS = Counter("steerlm_stage_attempts_total", "Attempts of stages that were started.", ["namespace", "stage"])
STAGE_RESULTS = Counter("steerlm_stage_results_total", "Ends of stage attempts.", ["namespace", "stage", "result"])
STAGE_SECONDS = Histogram(
    "steerlm_stage_duration_seconds",
    "Duration of stage attempts that ended well.",
    ["stage"],
    buckets=(10, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 72 * 3600),
)
CACHE_HITS = Counter("steerlm_cache_hits_total", "Stages that were found done.", ["stage"])
SERVERS_READY = Gauge("steerlm_annotation_servers_ready", "Annotation servers that answer.", ["namespace", "pipeline"])
DEVICES_HELD = Gauge("steerlm_devices_held", "Devices (GPUs) that a pipeline's pods hold.", ["namespace", "pipeline"])
DEVICE_HOURS = Gauge("steerlm_device_hours", "Devices times hours that a pipeline has taken.", ["namespace", "pipeline"])
STAGE_LOSS = Gauge("steerlm_stage_loss", "Loss of the last step of a training that runs.", ["namespace", "pipeline", "stage"])
STAGE_TOKENS = Gauge(
    "steerlm_stage_tokens_per_second",
    "Tokens per second of a training that runs, all its devices together.",
    ["namespace", "pipeline", "stage"],
)
RECONCILE_SECONDS = Histogram("steerlm_reconcile_duration_seconds", "Duration of one look at one pipeline.")
RECONCILE_ERRORS = Counter("steerlm_reconcile_errors_total", "Looks at a pipeline that ended in an error.", ["reason"])
STATUS_WRITES = Counter("steerlm_status_writes_total", "Writes of a status.", ["result"])
API_REQUESTS = Counter("steerlm_api_requests_total", "Requests to the API server, watches left out.", ["method", "status"])
QUEUE_LENGTH = Gauge("steerlm_queue_length", "Pipelines waiting to be looked at.")
LAST_RECONCILE = Gauge("steerlm_last_reconcile_timestamp_seconds", "When the last look at any pipeline ended.")


def stage_family(name: str) -> str:
    """A stage's name without its round, so that labels stay few."""
    return "-".join(part for part in name.split("-") if not part.isdigit())


TRAINING_GAUGES = {"loss": STAGE_LOSS, "tokens_per_second": STAGE_TOKENS}
"""By the name in a training's progress messages."""
_shown: dict[tuple[str, str], dict[str, str]] = {}
"""By pipeline, which of those are shown, and of which stage."""


def show(name: tuple[str, str], status: PipelineStatus, messages: Iterable[Mapping[str, Any]]) -> None:
    """Set what is true of a pipeline now, from its status and the last progress messages of its pods."""
    if status.annotation:
        SERVERS_READY.labels(*name).set(status.annotation.servers_ready)
    if status.devices:
        DEVICES_HELD.labels(*name).set(status.devices.held)
        DEVICE_HOURS.labels(*name).set(status.devices.hours)
    running = {entry.name for entry in status.stages if entry.phase == "Running"}
    message: Mapping[str, Any] = next((message for message in messages if message.get("stage") in running), {})
    stage = str(message.get("stage", ""))
    measured = {key: float(message[key]) for key in TRAINING_GAUGES if isinstance(message.get(key), int | float)}
    _drop(name, keep=dict.fromkeys(measured, stage))
    for key, value in measured.items():
        TRAINING_GAUGES[key].labels(*name, stage).set(value)


def forget(name: tuple[str, str]) -> None:
    """Say nothing more of a pipeline that is gone."""
    for gauge in (SERVERS_READY, DEVICES_HELD, DEVICE_HOURS):
        with contextlib.suppress(KeyError):
            gauge.remove(*name)
    _drop(name, keep={})


def _drop(name: tuple[str, str], keep: dict[str, str]) -> None:
    """A training that has ended has no loss any longer."""
    for key, stage in _shown.pop(name, {}).items():
        if keep.get(key) != stage:
            TRAINING_GAUGES[key].remove(*name, stage)
    if keep:
        _shown[name] = keep


def count(namespace: str, before: PipelineStatus, after: PipelineStatus) -> None:
    """Count what happened between two statuses of a pipeline, once the second is written."""
    known = {entry.name: entry for entry in before.stages}
    for entry in after.stages:
        family = stage_family(entry.name)
        old_entry = known.get(entry.name)
        if entry.attempt > (old_entry.attempt if old_entry else 0):
            STAGE_ATTEMPTS.labels(namespace, family).inc()
        if old_entry and entry.phase == old_entry.phase:
            continue
        if entry.done or entry.phase in ("Failed", "Retrying"):
            STAGE_RESULTS.labels(namespace, family, entry.phase).inc()
        if entry.phase == "CacheHit":
            CACHE_HITS.labels(family).inc()
        elif entry.done and entry.start_time and entry.completion_time:
            start, end = (datetime.datetime.fromisoformat(t.replace("Z", "+00:00")) for t in (entry.start_time, entry.completion_time))
            STAGE_SECONDS.labels(family).observe((end - start).total_seconds())
