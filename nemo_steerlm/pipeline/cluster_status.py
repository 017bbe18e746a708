"""The status that the operator keeps in a ``SteerLMPipeline``: conditions for programs, phases and progress for people.

Bounded on purpose: counts and messages, never one entry a shard or a record.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict

Phase = Literal["Pending", "Running", "Retrying", "Suspending", "Suspended", "Succeeded", "Failed"]
StagePhase = Literal["Pending", "Queued", "Running", "Retrying", "Succeeded", "CacheHit", "Failed"]
ConditionType = Literal[
    "Ready",
    "Stalled",
    "Accepted",
    "EngineAvailable",
    "StorageReady",
    "SecretsAvailable",
    "ServersReady",
    "CheckpointFits",
    "Advancing",
    "Progressing",
    "Suspended",
    "Serving",
    "Complete",
    "Failed",
]
Step = Literal["Work", "Merge"]
Timestamp = Annotated[str, Field(max_length=32, json_schema_extra={"format": "date-time"})]
StatusMessage = Annotated[str, Field(max_length=1024)]
Reason = Annotated[str, Field(max_length=64)]
Number = Annotated[int, Field(ge=0, le=1_000_000_000)]


class Status(BaseModel):
    """Base: camelCase keys; unknown keys of a newer operator are dropped."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", use_attribute_docstrings=True)


class Condition(Status):
    """One aspect of the pipeline, as ``kubectl wait --for=condition=TYPE`` reads it."""

    type: ConditionType
    """Which aspect."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    """Why, in one word that does not change."""
    message: StatusMessage = ""
    """Why, in a sentence."""
    last_transition_time: Timestamp
    """When ``status`` last changed."""
    observed_generation: Annotated[int, Field(ge=0)] = 0
    """The generation of the spec it was computed from."""


class StageStatus(Status):
    """How far one stage is."""

    name: Annotated[str, Field(max_length=63)]
    """The stage."""
    phase: StagePhase = "Pending"
    """Its state; Queued while its pods wait for room or admission."""
    attempt: Number = 0
    """How often it was started; part of its objects' names."""
    counted_failures: Number = 0
    """Failures since it last got further that count against ``runPolicy.backoffLimit``: not preemption, eviction or node loss."""
    disruptions: Number = 0
    """The others since it last got further, which count against ``runPolicy.disruptionLimit``."""
    furthest: Number = 0
    """How far any attempt has got: the step of a training's last checkpoint, records or parts of other stages."""
    progress_attempt: Number = 0
    """The attempt that got there."""
    step: Step = "Work"
    """Merge once all shards are done."""
    reason: Reason | None = None
    """Why it waits or failed, in one word."""
    message: StatusMessage | None = None
    """The same in a sentence."""
    progress: Annotated[str, Field(max_length=128)] | None = None
    """What its process last said, such as ``412/1000 loss 1.83``."""
    input_hash: Annotated[str, Field(max_length=64)] | None = None
    """sha256 over everything that changes its result."""
    spec_hash: Annotated[str, Field(max_length=64)] | None = None
    """sha256 over what the spec said of it when its present attempt started; the stage is done again if that changes."""
    metrics: Annotated[dict[str, Annotated[str, Field(max_length=64)]], Field(max_length=32)] | None = None
    """What it measured."""
    restart_token: Annotated[str, Field(max_length=63)] | None = None
    """The ``spec.restart`` token that asked for it to be done again."""
    start_time: Timestamp | None = None
    """When its present attempt started."""
    completion_time: Timestamp | None = None
    """When it ended."""
    progress_time: Timestamp | None = None
    """When its process last said something new; ``runPolicy.stallSeconds`` counts from here."""
    next_attempt_time: Timestamp | None = None
    """When it is tried again."""

    @property
    def done(self) -> bool:
        """Whether its outputs are there."""
        return self.phase in ("Succeeded", "CacheHit")


class ImagesStatus(Status):
    """The images that a pipeline runs."""

    worker: Annotated[str, Field(max_length=512)]
    """Of prepare, annotate, sample and evaluate."""
    train: Annotated[str, Field(max_length=512)]
    """Of the trainings."""
    serve: Annotated[str, Field(max_length=512)]
    """Of inference servers."""
    vllm: Annotated[str, Field(max_length=512)] | None = None
    """Of vLLM, where one is known."""


class DevicesStatus(Status):
    """What the pipeline takes of the cluster's devices, GPUs most often."""

    held: Number = 0
    """How many its pods hold now."""
    since: Timestamp | None = None
    """Up to when ``hours`` counts; it is brought up to date when ``held`` changes, and every ten minutes."""
    hours: Annotated[float, Field(ge=0)] = 0.0
    """Devices times hours since the pipeline was made."""


class AnnotationStatus(Status):
    """The annotation's shards and servers; ``kubectl scale`` reads the last two."""

    shards: Number = 0
    """How many there are."""
    succeeded: Number = 0
    """How many are done."""
    failed_indexes: Annotated[str, Field(max_length=1024)] | None = None
    """Which failed for good, as ranges."""
    servers_ready: Number = 0
    """Servers that answer."""
    selector: Annotated[str, Field(max_length=512)] | None = None
    """Label selector of the servers' pods."""


def _keyed(key: str) -> JsonDict:
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


class ServingStatus(Status):
    """The Deployment of the server that stays as it was when the operator had applied it: what differs since then is somebody else's."""

    applied: Annotated[str, Field(max_length=64)]
    """The operator's mark on it."""
    generation: Annotated[int, Field(ge=0)]
    """Its generation."""
    corrections: Number = 0
    """How often it was put right."""


class PipelineStatus(Status):
    """What the operator saw and decided."""

    phase: Phase = "Pending"
    """A summary for people; programs read the conditions."""
    observed_generation: Annotated[int, Field(ge=0)] = 0
    """The generation of the spec that this status is about."""
    observed_restart_token: Annotated[str, Field(max_length=63)] | None = None
    """The last ``spec.restart.token`` that was acted on."""
    current_stage: Annotated[str, Field(max_length=63)] | None = None
    """The stage that runs, waits or failed."""
    round: Number | None = None
    """The bootstrap round it belongs to."""
    progress: Annotated[str, Field(max_length=192)] | None = None
    """One line for people."""
    start_time: Timestamp | None = None
    """When the pipeline was started or resumed; ``activeDeadlineSeconds`` counts from here."""
    completion_time: Timestamp | None = None
    """When it ended."""
    conditions: list[Condition] = Field([], max_length=16, json_schema_extra=_keyed("type"))
    """Complete and Failed end it; the others say what it waits for."""
    stages: list[StageStatus] = Field([], max_length=80, json_schema_extra=_keyed("name"))
    """Each stage, in the order they run."""
    images: ImagesStatus | None = None
    """What it runs since it started: another version of the operator changes none of them until ``spec.restart`` asks."""
    serving: ServingStatus | None = None
    """The server that stays, as it was applied."""
    devices: DevicesStatus | None = None
    """Devices that it holds, and device hours; nothing where none was ever held."""
    annotation: AnnotationStatus | None = None
    """Shards and servers of the annotation."""
    endpoints: Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=8)] | None = None
    """Addresses inside the cluster: ``value`` and ``steer`` while servers run, ``serve`` for the one that stays."""
