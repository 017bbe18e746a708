"""The loop around ``decide``: reading what there is, and the order of the writes.

A status is written before anything is made or deleted for it, and only over the very version of the resource that was read. So a decision
from a stale cache can do nothing: its status is refused, or, where it would write none, the resource is read again first.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from nemo_steerlm.pipeline.cluster_status import PipelineStatus
from steerlm_operator import metrics, names
from steerlm_operator.cluster import ApiError, Cluster
from steerlm_operator.config import OperatorConfig
from steerlm_operator.draft import Decision, Observed, Refusal, find_condition, holds
from steerlm_operator.models import Object
from steerlm_operator.readings import classify_refusal, last_progress
from steerlm_operator.reconcile import decide
from steerlm_operator.reconcile_state import Caches, ReconcileState
from steerlm_operator.storage import MISSING_SECONDS, UNSETTLED, USABLE
from steerlm_operator.work_queue import NamespacedName, WorkQueue

logger = logging.getLogger(__name__)

LONGEST_BACKOFF_SECONDS = 120.0
CONFLICT_TRIES = 5
DISCOVERY_SECONDS = 30.0
"""Between two looks at which APIs the cluster has, while a pipeline waits for one."""
UNBOUND_REASONS = ("ProvisioningFailed", "FailedBinding", "VolumeMismatch", "ProvisioningCleanupFailed")
"""Of the events about a claim, those that say why it has no volume."""
LOGS_AT_ONCE = 16
LOG_READS_PER_SECOND = 20
"""Of all pipelines together: with hundreds of them each is asked less often, and the API server is not kept busy by it."""


class Controller:
    """Looks at pipelines, one at a time each, several side by side."""

    def __init__(self, config: OperatorConfig, caches: Caches, clock: Callable[[], datetime.datetime] | None = None) -> None:
        self.config = config
        self.caches = caches
        self.cluster: Cluster | None = None
        self.apis: frozenset[str] | None = None
        self.standby = False
        """Whether another process leads."""
        self._clock = clock or (lambda: datetime.datetime.now(datetime.timezone.utc))
        self._memory: dict[NamespacedName, ReconcileState] = {}
        self.queue = WorkQueue()
        self._phases: dict[NamespacedName, str] = {}
        self._last_resync = time.monotonic()
        self._last_discovery = 0.0

    def begin(self, cluster: Cluster) -> None:
        """This process acts from now on."""
        self.cluster, self.standby, self._last_resync = cluster, False, time.monotonic()

    def problem(self) -> str | None:
        """Why the operator should be restarted, or None."""
        if self.standby:
            return None
        limit = self.config.stuck_seconds
        if late := self.queue.older_than(limit):
            return f"{len(late)} pipelines wait for more than {limit:.0f} s, {'/'.join(late[0])} among them"
        if time.monotonic() - self._last_resync > 2 * self.config.resync_seconds + limit:
            return "the regular look at every pipeline has stopped"
        return None

    async def work(self) -> None:
        """Take pipelines from the queue forever."""
        while True:
            name = await self.queue.take()
            try:
                with metrics.RECONCILE_SECONDS.time():
                    await self._look(name)
                self._memory.get(name, ReconcileState()).errors = 0
            except Exception as error:  # noqa: BLE001 - one pipeline's trouble must not stop the others
                self._note_error(name, error)
            finally:
                self.queue.done(name)
                metrics.LAST_RECONCILE.set_to_current_time()

    def _note_error(self, name: NamespacedName, error: Exception) -> None:
        memory = self._memory.setdefault(name, ReconcileState())
        memory.errors += 1
        delay = min(0.5 * 2 ** min(memory.errors, 10), LONGEST_BACKOFF_SECONDS)
        known = isinstance(error, ApiError)
        metrics.RECONCILE_ERRORS.labels(f"http-{error.status}" if isinstance(error, ApiError) else type(error).__name__).inc()
        said = None if known else error
        logger.warning("%s/%s: %s; again in %.0f s", *name, error, delay, exc_info=said, extra=_fields(name, reason=type(error).__name__))
        self.queue.add_after(name, delay)

    async def resync(self) -> None:
        """Look at everything now and then: at what no watch tells, such as a claim or a newly installed API."""
        while True:
            await self.discover()
            for name in self.caches.pipelines():
                self._memory.setdefault(name, ReconcileState()).look_at_claim = True
                self.queue.add(name)
            self._last_resync = time.monotonic()
            # Until the first API groups are known, look again soon.
            await asyncio.sleep(self.config.resync_seconds if self.apis is not None else 1)

    async def discover(self) -> None:
        """Learn which API groups the cluster has; where it does not say, they stay as they were."""
        if self.cluster is None:
            return
        try:
            self.apis = await self.cluster.api_groups()
            self._last_discovery = time.monotonic()
        except ApiError as error:
            logger.warning("cannot list API groups: %s", error)

    async def follow(self) -> None:
        """Read what running stages print, and hand it on where it changed."""
        while True:
            await asyncio.sleep(self.config.progress_seconds)
            watched = [(name, pod) for name, memory in self._memory.items() for pod in memory.watch]
            for start in range(0, len(watched), LOGS_AT_ONCE):
                pause = asyncio.sleep(LOGS_AT_ONCE / LOG_READS_PER_SECOND if len(watched) > LOGS_AT_ONCE else 0)
                await asyncio.gather(pause, *(self._read_progress(name, pod) for name, pod in watched[start : start + LOGS_AT_ONCE]))

    async def _read_progress(self, name: NamespacedName, pod: str) -> None:
        memory = self._memory.get(name)
        if self.cluster is None or memory is None:
            return
        try:
            found = last_progress(await self.cluster.log_tail(name[0], pod))
        except ApiError as error:
            logger.debug("%s/%s: no output of %s: %s", *name, pod, error)
            return
        if found and memory.progress.get(pod) != found:
            memory.progress = {pod: found}
            self.queue.add(name)

    async def _look(self, name: NamespacedName) -> None:
        if self.cluster is None:
            self.queue.add_after(name, 1)
            return
        memory = self._memory.setdefault(name, ReconcileState())
        resource = self._newest(name, memory)
        if resource is None:
            self._forget(name)
            return
        for _ in range(CONFLICT_TRIES):
            decision = await self._decide(name, resource, memory)
            written = dump(decision.status)
            if written != normalized(resource.get("status")):
                fresh = await self._write(resource, written, decision, memory)
            elif decision.apply or decision.delete or decision.delete_self:
                fresh = await self._reread(resource)
                if fresh and fresh["metadata"]["resourceVersion"] != resource["metadata"]["resourceVersion"]:
                    resource = fresh
                    continue
            else:
                fresh = resource
            if fresh is None:  # changed or gone meanwhile
                resource = await self._reread(resource)
                if resource is None:
                    self._forget(name)
                    return
                continue
            self._gauge(name, decision.status, memory)
            await self._act(name, fresh, decision, memory)
            return
        self.queue.add_after(name, 1)

    def _newest(self, name: NamespacedName, memory: ReconcileState) -> Object | None:
        resource = self.caches.pipeline(name)
        if resource is None or memory.latest is None:
            return resource
        if resource["metadata"]["uid"] != memory.latest["metadata"]["uid"]:
            self._memory[name] = ReconcileState()
            return resource
        if resource["metadata"]["resourceVersion"] in memory.superseded:
            return memory.latest
        memory.superseded.clear()
        memory.latest = None
        return resource

    def _forget(self, name: NamespacedName) -> None:
        self._memory.pop(name, None)
        self.queue.cancel_timer(name)
        if phase := self._phases.pop(name, None):
            metrics.PIPELINES.labels(name[0], phase).dec()
        metrics.forget(name)

    async def _decide(self, name: NamespacedName, resource: Object, memory: ReconcileState) -> Decision:
        status = PipelineStatus.model_validate(resource.get("status") or {})
        ended = holds(status, "Complete") or holds(status, "Failed")
        engine = find_condition(status, "EngineAvailable")
        if engine and engine.status == "False" and not ended and time.monotonic() - self._last_discovery > DISCOVERY_SECONDS:
            await self.discover()  # somebody may have installed it by now
        claim: Object | None = None
        storage = find_condition(status, "StorageReady")
        waiting = storage is not None and storage.reason in UNSETTLED
        unusable = storage is None or storage.reason not in USABLE
        if not ended and (memory.look_at_claim or unusable or (waiting and time.monotonic() - memory.claim_seen >= MISSING_SECONDS)):
            claim, memory.claim_event = await self._claim(resource)
            memory.look_at_claim, memory.claim_seen = False, time.monotonic()
        pods = self.caches.pods(name)
        present = {pod["metadata"]["name"] for pod in pods}
        memory.progress = {pod: said for pod, said in memory.progress.items() if pod in present}
        observed = Observed(
            children={(child["kind"], child["metadata"]["name"]): child for child in self.caches.children(name)},
            pods=pods,
            claim=claim,
            claim_event=memory.claim_event,
            apis=self.apis,
            refusals=memory.refusals,
            creation_failures=memory.creation_failures,
            queue_said=memory.queue_said,
            progress=memory.progress,
        )
        return decide(resource, observed, self.config, self._clock())

    async def _claim(self, resource: Object) -> tuple[Object, str]:
        """The claim, {} where it is absent; and while it has no volume, what was said about that."""
        if self.cluster is None:
            return {}, ""
        storage = (resource.get("spec") or {}).get("storage") or {}
        claim = storage.get("claimName")
        if not claim and not storage.get("claimTemplate"):
            claim = self.config.storage.claim_name
        metadata = resource["metadata"]
        place = metadata["namespace"], claim or names.claim(metadata["name"])
        found = await self.cluster.get("v1", "PersistentVolumeClaim", *place)
        if not found or found.get("status", {}).get("phase", "Pending") != "Pending":
            return found or {}, ""
        return found, await self.cluster.last_event(place[0], "PersistentVolumeClaim", place[1], *UNBOUND_REASONS)

    async def _write(self, resource: Object, status: Object, decision: Decision, memory: ReconcileState) -> Object | None:
        """The resource with the new status, or None where it had changed."""
        if self.cluster is None:
            return None
        try:
            written = await self.cluster.write_status(resource, status)
        except ApiError as error:
            metrics.STATUS_WRITES.labels(str(error.status)).inc()
            if error.status in (404, 409):
                return None
            raise
        metrics.STATUS_WRITES.labels("200").inc()
        memory.superseded.add(resource["metadata"]["resourceVersion"])
        written["metadata"].pop("managedFields", None)
        memory.latest = written
        before = PipelineStatus.model_validate(resource.get("status") or {})
        metrics.count(resource["metadata"]["namespace"], before, decision.status)
        for event in decision.events:
            name = (resource["metadata"]["namespace"], resource["metadata"]["name"])
            logger.info("%s/%s: %s: %s", *name, event.reason, event.message, extra=_fields(name, reason=event.reason))
            try:
                await self.cluster.post_event(written, event.type, event.reason, event.message)
            except ApiError as error:
                logger.warning("%s/%s: event %s not posted: %s", *name, event.reason, error, extra=_fields(name, reason=event.reason))
        return written

    async def _reread(self, resource: Object) -> Object | None:
        if self.cluster is None:
            return None
        metadata = resource["metadata"]
        found = await self.cluster.get(resource["apiVersion"], resource["kind"], metadata["namespace"], metadata["name"])
        return found if found and found["metadata"]["uid"] == metadata["uid"] else None

    async def _act(self, name: NamespacedName, resource: Object, decision: Decision, memory: ReconcileState) -> None:
        cluster = self.cluster
        if cluster is None:
            return
        for child in decision.delete:
            await cluster.delete(child.api_version, child.kind, name[0], child.name, child.uid)
        memory.watch = tuple(decision.watch)
        if not await self._apply(name, decision, memory):
            await self._write_refusal(name, resource, memory)
            return
        if decision.delete_self:
            await cluster.delete(resource["apiVersion"], resource["kind"], *name, resource["metadata"]["uid"])
            return
        for job in decision.inspect:
            said = await cluster.last_event(name[0], "Job", job, "FailedCreate")
            if said and memory.creation_failures.get(job) != said:
                memory.creation_failures = {job: said}
                self.queue.add(name)
        said_by_queue = {each: await cluster.last_event(name[0], "Workload", each, "Pending", prefix=True) for each in decision.queued}
        if memory.queue_said != said_by_queue:
            memory.queue_said = said_by_queue
            self.queue.add(name)
        if decision.again is not None:
            self.queue.add_after(name, max(decision.again, 0.1))

    async def _apply(self, name: NamespacedName, decision: Decision, memory: ReconcileState) -> bool:
        """Whether the API server took everything. Raises ApiError for trouble that is not about the objects."""
        if self.cluster is None:
            return False
        seen = {(child["kind"], child["metadata"]["name"]) for child in self.caches.children(name)}
        for wanted in decision.apply:
            key = (wanted["kind"], wanted["metadata"]["name"])
            try:
                # An object that was not there is not taken over from somebody else who just made it.
                await self.cluster.apply(wanted, force=key in seen)
            except ApiError as error:
                if error.status in (0, 429) or error.status >= 500:
                    raise
                reason, message = classify_refusal(error.status, error.message)
                before = memory.refusals.get(key)
                memory.refusals = {key: Refusal(reason=reason, message=message, count=before.count + 1 if before else 1)}
                logger.warning("%s/%s: %s %s refused: %s", *name, *key, message, extra=_fields(name, reason=reason))
                return False
            memory.refusals.pop(key, None)
        return True

    async def _write_refusal(self, name: NamespacedName, resource: Object, memory: ReconcileState) -> None:
        """Say in the status what was refused; the next try comes after a while."""
        decision = await self._decide(name, resource, memory)
        written = dump(decision.status)
        if written != normalized(resource.get("status")) and await self._write(resource, written, decision, memory) is None:
            self.queue.add(name)
        self.queue.add_after(name, decision.again or LONGEST_BACKOFF_SECONDS)

    def _gauge(self, name: NamespacedName, status: PipelineStatus, memory: ReconcileState) -> None:
        """Metrics of how things are: also of a pipeline whose status an earlier process wrote."""
        if (old := self._phases.get(name)) != status.phase:
            if old:
                metrics.PIPELINES.labels(name[0], old).dec()
            metrics.PIPELINES.labels(name[0], status.phase).inc()
            self._phases[name] = status.phase
        metrics.show(name, status, memory.progress.values())


def _fields(name: NamespacedName, *, reason: str) -> dict[str, str]:
    """What a log line says in fields of its own, for logs in JSON."""
    return {"namespace": name[0], "pipeline": name[1], "reason": reason}


def dump(status: PipelineStatus) -> Object:
    """A status as it is written: what has no value is left out."""
    dumped: Object = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    return dumped


def normalized(status: Mapping[str, Any] | None) -> Object | None:
    """A status that was read, as ``dump`` would have written it; None for one that was never written."""
    return dump(PipelineStatus.model_validate(status)) if status else None
