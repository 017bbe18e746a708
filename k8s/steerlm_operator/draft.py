"""A decision while it is being made: what was seen, what is wanted, and the status so far. Pure: the clock's reading is an input."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_steerlm.pipeline.cluster_status import Condition, ConditionType, PipelineStatus
from steerlm_operator import names
from steerlm_operator.models import Object, Pipeline
from steerlm_operator.readings import shorten

Key = tuple[str, str]
"""Kind and name of a child."""

QUEUE_SECONDS = 30
"""Between two looks at what a queue says of what it has not admitted."""
NEVER_CHANGED = ("Job", "JobSet", "ConfigMap", "PodGroup", "PersistentVolumeClaim")
"""Kinds that are applied once: immutable, or with fields that queues and people may set after us."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refusal:
    """The API server did not take an object."""

    reason: str
    message: str
    count: int = 1
    """Times in a row."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observed:
    """What was seen of a pipeline's surroundings, possibly some time ago."""

    children: Mapping[Key, Object] = dataclasses.field(default_factory=dict)
    """Jobs, Deployments, Services, ConfigMaps and NetworkPolicies labelled with the pipeline's name; also those of a former one."""
    pods: Sequence[Object] = ()
    """Pods labelled with the pipeline's name."""
    claim: Object | None = None
    """The claim; {} where it was looked for and is absent, None where nobody looked."""
    claim_event: str = ""
    """What was last said about why the claim has no volume."""
    apis: frozenset[str] | None = None
    """API groups the cluster has; None where nobody asked."""
    refusals: Mapping[Key, Refusal] = dataclasses.field(default_factory=dict)
    creation_failures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Job name to the last event that said why its pods cannot be made."""
    queue_said: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """How the name of a Workload of Kueue's begins, to the last event that said why it is not admitted."""
    progress: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Pod name to its last progress message."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """Something worth a line in ``kubectl describe``: a transition."""

    type: str
    """Normal or Warning."""
    reason: str
    message: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Child:
    """An object to delete, if it still is the one that was seen."""

    api_version: str
    kind: str
    name: str
    uid: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """What follows from a resource and its surroundings."""

    status: PipelineStatus
    apply: Sequence[Object] = ()
    delete: Sequence[Child] = ()
    delete_self: bool = False
    """The pipeline's time to live is over."""
    events: Sequence[Event] = ()
    again: float | None = None
    """Seconds after which to decide again even if nothing happens."""
    inspect: Sequence[str] = ()
    """Jobs without pods: somebody should look at their events."""
    queued: Sequence[str] = ()
    """How the names of Kueue's Workloads begin that wait: somebody should look at their events."""
    watch: Sequence[str] = ()
    """Pods whose output tells the progress."""


class Draft:
    """One decision in the making."""

    def __init__(self, pipeline: Pipeline, observed: Observed, status: PipelineStatus, now: datetime.datetime) -> None:
        self.pipeline = pipeline
        self.observed = observed
        self.status = status
        self.now = now
        self.wanted: set[Key] = set()
        self.keep = False
        """Delete nothing: it is not known yet what is wanted."""
        self.apply: list[Object] = []
        self.last: list[Object] = []
        """Applied after all others: the API server may refuse it, and that is to stop nothing else."""
        self.events: list[Event] = []
        self.inspect: list[str] = []
        self.queued: list[str] = []
        self.watch: list[str] = []
        self.again: float | None = None

    def want(self, *objects: Object) -> None:
        """These objects should exist as they are here."""
        for wanted in objects:
            key = (wanted["kind"], wanted["metadata"]["name"])
            self.wanted.add(key)
            stamped = _stamped(wanted)
            seen = self.observed.children.get(key)
            if seen is not None and self.is_own(seen) and _runs_the_same(seen, stamped):
                self._scale(seen, stamped)
            elif seen is None or (self.is_own(seen) and _outdated(seen, stamped)):
                self.apply.append(stamped)
            elif not self.is_own(seen):
                # A former pipeline's object of that name, on its way out.
                self.look_again(2)

    def _scale(self, seen: Object, stamped: Object) -> None:
        """Give a Deployment whose pods are right another number of them, and leave its template, an older operator's maybe, as it is."""
        replicas = stamped["spec"].get("replicas")
        if replicas is not None and seen.get("spec", {}).get("replicas") != replicas:
            metadata = {key: stamped["metadata"][key] for key in ("name", "namespace")}
            mark = {names.APPLIED: f"{stamped['metadata']['annotations'][names.APPLIED]}.{seen['metadata'].get('generation', 0)}"}
            self.apply.append({**stamped, "metadata": metadata | {"annotations": mark}, "spec": {"replicas": replicas}})

    def correct(self, wanted: Object) -> None:
        """Apply an object once more over what somebody made of it; the next look finds another mark and takes it for ours."""
        stamped = _stamped(wanted)
        key = (wanted["kind"], wanted["metadata"]["name"])
        seen = self.observed.children[key]
        stamped["metadata"]["annotations"][names.APPLIED] += f".{seen['metadata'].get('generation', 0)}"
        self.apply = [other for other in self.apply if (other["kind"], other["metadata"]["name"]) != key]
        self.apply.append(stamped)

    def own(self, kind: str, name: str) -> Object | None:
        """The child of that name, where it is this pipeline's and stays."""
        seen = self.observed.children.get((kind, name))
        return seen if seen and self.is_own(seen) else None

    def is_own(self, seen: Object) -> bool:
        """Whether it belongs to this very pipeline and is not being deleted."""
        metadata = seen["metadata"]
        return bool((metadata.get("labels") or {}).get(names.PIPELINE_UID) == self.pipeline.uid and not metadata.get("deletionTimestamp"))

    def pods(self, **labels: str) -> list[Object]:
        """This pipeline's pods with these labels (dots, slashes and dashes of the keys as in ``names``)."""
        wanted = self.pipeline.labels(**labels)
        return [pod for pod in self.observed.pods if wanted.items() <= (pod["metadata"].get("labels") or {}).items()]

    def job_pods(self, job: Object) -> list[Object]:
        """The pods of one Job."""
        name, uid = job["metadata"]["name"], job["metadata"].get("uid")
        return [
            pod
            for pod in self.observed.pods
            if (pod["metadata"].get("labels") or {}).get(names.JOB_NAME) == name
            and any(owner.get("uid") == uid for owner in pod["metadata"].get("ownerReferences") or ())
        ]

    def condition(self, kind: ConditionType, holds: bool, reason: str, message: str = "") -> None:
        """Set a condition; its transition time changes only with its status."""
        status = "True" if holds else "False"
        before = find_condition(self.status, kind)
        new = Condition(
            type=kind,
            status="True" if holds else "False",
            reason=reason,
            message=shorten(message),
            last_transition_time=before.last_transition_time if before and before.status == status else self.timestamp(),
            observed_generation=self.pipeline.generation,
        )
        self.status.conditions = [c for c in self.status.conditions if c.type != kind] + [new]

    def drop_condition(self, kind: ConditionType) -> None:
        """Have no condition of this kind: there is nothing to say of it."""
        self.status.conditions = [condition for condition in self.status.conditions if condition.type != kind]

    def queue_said(self, owner: Object) -> str:
        """Why a queue does not admit a Job or a pod, as the end of a sentence; asks somebody to look after that."""
        prefix = workload_prefix(owner)
        self.queued.append(prefix)
        self.look_again(QUEUE_SECONDS)
        said = self.observed.queue_said.get(prefix)
        return f": {said}" if said else ""

    def event(self, reason: str, message: str, *, warning: bool = False) -> None:
        """Tell people about a transition."""
        self.events.append(Event(type="Warning" if warning else "Normal", reason=reason, message=shorten(message)))

    def look_again(self, seconds: float) -> None:
        """Decide again after so long at the latest."""
        self.again = seconds if self.again is None else min(self.again, seconds)

    def timestamp(self, after: float = 0) -> str:
        """Now, or ``after`` seconds from now, as Kubernetes writes time."""
        return (self.now + datetime.timedelta(seconds=after)).strftime("%Y-%m-%dT%H:%M:%SZ")

    def seconds_since(self, text: str | None) -> float:
        """Seconds since a time in the status; 0 where it has none."""
        if not text:
            return 0.0
        return (self.now - datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))).total_seconds()

    def decision(self, *, delete_self: bool = False) -> Decision:
        """What has been decided. Whatever is running and not wanted is deleted."""
        self.status.conditions.sort(key=lambda condition: condition.type)
        return Decision(
            status=self.status,
            apply=(*self.apply, *self.last),
            delete=() if self.keep else tuple(self._unwanted()),
            delete_self=delete_self,
            events=tuple(self.events),
            again=self.again,
            inspect=tuple(self.inspect),
            queued=tuple(self.queued),
            watch=tuple(self.watch),
        )

    def _unwanted(self) -> list[Child]:
        found = []
        for (kind, name), seen in sorted(self.observed.children.items()):
            if (kind, name) in self.wanted or not self.is_own(seen) or kind not in ("Job", "Deployment", "Service"):
                continue
            if kind == "Job" and finished(seen):
                continue  # its pods keep the logs until its time to live is over
            jobset = next((o for o in seen["metadata"].get("ownerReferences") or () if o.get("kind") == "JobSet"), None)
            if jobset:
                found.append(Child(api_version="jobset.x-k8s.io/v1alpha2", kind="JobSet", name=jobset["name"], uid=jobset["uid"]))
            else:
                version = {"Job": "batch/v1", "Deployment": "apps/v1", "Service": "v1"}[kind]
                found.append(Child(api_version=version, kind=kind, name=name, uid=seen["metadata"].get("uid", "")))
        return found


def finished(job: Object) -> bool:
    """Whether a Job has ended."""
    return any(c["type"] in ("Complete", "Failed") and c.get("status") == "True" for c in job.get("status", {}).get("conditions") or ())


def find_condition(status: PipelineStatus, kind: ConditionType) -> Condition | None:
    """One condition of a status."""
    return next((condition for condition in status.conditions if condition.type == kind), None)


def holds(status: PipelineStatus, kind: ConditionType) -> bool:
    """Whether a condition is True."""
    found = find_condition(status, kind)
    return found is not None and found.status == "True"


def _stamped(wanted: Object) -> Object:
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]
    annotations = {**(wanted["metadata"].get("annotations") or {}), names.APPLIED: digest}
    return {**wanted, "metadata": {**wanted["metadata"], "annotations": annotations}}


def workload_prefix(owner: Object) -> str:
    """How the name of Kueue's Workload for a Job or a pod begins. A JobSet's Job has none of its own."""
    metadata = owner["metadata"]
    jobset = next((o["name"] for o in metadata.get("ownerReferences") or () if o.get("kind") == "JobSet"), None)
    return f"jobset-{jobset}-" if jobset else f"{owner.get('kind', 'Pod').lower()}-{metadata['name']}-"


def annotation(seen: Object, name: str) -> str:
    """An annotation of an object; empty where it has none."""
    return str((seen["metadata"].get("annotations") or {}).get(name, ""))


def _runs_the_same(seen: Object, wanted: Object) -> bool:
    return bool(annotation(wanted, names.RUNS)) and annotation(seen, names.RUNS) == annotation(wanted, names.RUNS)


def _outdated(seen: Object, wanted: Object) -> bool:
    if wanted["kind"] in NEVER_CHANGED:
        return False
    return annotation(seen, names.APPLIED) != annotation(wanted, names.APPLIED)
