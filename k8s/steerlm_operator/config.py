"""The operator's own configuration: defaults for what a pipeline leaves out, and how the operator runs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Literal

import pydantic
from pydantic import Field

from nemo_steerlm import __version__
from nemo_steerlm.core import environment
from nemo_steerlm.core.errors import ConfigError, UsageError
from nemo_steerlm.core.processes import GRACE_SECONDS
from nemo_steerlm.core.spec import from_plain
from nemo_steerlm.core.yaml_files import read_yaml
from nemo_steerlm.pipeline.cluster_spec import (
    AmountSpec,
    ClaimTemplateSpec,
    ImagesSpec,
    ResourcesSpec,
    RunPolicySpec,
    SchedulingSpec,
    StorageSpec,
)
from nemo_steerlm.pipeline.mistakes import mistakes
from nemo_steerlm.pipeline.pod_spec import EVERYBODY_MAY, PodSpec, PodsSpec
from nemo_steerlm.pipeline.sources import Spec

DISRUPTION_LIMIT = 30
"""With a wait that doubles up to ten minutes: four hours of nothing but disruptions."""


if TYPE_CHECKING:
    PodField = str
else:
    PodField = Literal[tuple(str(field.alias) for field in PodSpec.model_fields.values())]


class SecurityConfig(Spec):
    """Who the workloads run as. The pods satisfy Pod Security *restricted* whatever stands here."""

    run_as_user: Annotated[int, Field(ge=1)] | None = 1000
    """User of every workload container; null on a cluster that assigns users to namespaces, as OpenShift does."""
    fs_group: Annotated[int, Field(ge=1)] | None = 1000
    """Group that owns the claim's files; also the containers' group; null as above."""
    network_policies: bool = True
    """Whether pipelines get NetworkPolicies around their pods."""


class OperatorConfig(Spec):
    """Everything the chart sets. Fields of a pipeline's spec win over the defaults here."""

    images: ImagesSpec = ImagesSpec.model_validate({"worker": f"nemo-steerlm-worker:{__version__}"})
    """Default images."""
    storage: StorageSpec = StorageSpec(claimTemplate=ClaimTemplateSpec(size="500Gi"))
    """Default claim."""
    resources: ResourcesSpec = ResourcesSpec(
        prepare=AmountSpec(cpu="2", memory="8Gi"),
        train=AmountSpec(cpu="8", memory="64Gi", sharedMemory="16Gi"),
        annotate=AmountSpec(cpu="1", memory="2Gi"),
        evaluate=AmountSpec(cpu="2", memory="4Gi"),
        servers=AmountSpec(cpu="4", memory="32Gi"),
    )
    """Default processors and memory."""
    pods: PodsSpec = PodsSpec()
    """What every pipeline's pods have more, one entry a role. All fields may stand here, whatever ``podFields`` says."""
    pod_fields: Annotated[tuple[PodField, ...], Field(max_length=32)] = EVERYBODY_MAY
    """Which fields of a pod pipelines may set under ``pods``; others are refused by name. hostNetwork, capabilities, runtimeClassName and
    serviceAccountName are for whoever may use them in every namespace."""
    scheduling: SchedulingSpec = SchedulingSpec(deviceResource="nvidia.com/gpu")
    """Default placement."""
    run_policy: RunPolicySpec = RunPolicySpec(
        backoffLimit=2,
        disruptionLimit=DISRUPTION_LIMIT,
        retriesPerShard=3,
        gracePeriodSeconds=int(GRACE_SECONDS),
        jobTtlSecondsAfterFinished=86_400,
    )
    """Default retries and deadlines."""
    environment: Annotated[dict[str, str], Field(max_length=64)] = Field({}, max_length=64)
    """Environment of every workload container, such as NCCL's settings on this platform."""
    coscheduling_scheduler_name: str = "scheduler-plugins-scheduler"
    """Scheduler of pods with gang Coscheduling."""
    security: SecurityConfig = SecurityConfig()
    """Who workloads run as."""
    namespaces: tuple[str, ...] = ()
    """Namespaces to watch; the whole cluster where empty."""
    selector: Annotated[str, Field(max_length=1024)] = ""
    """Label selector of the pipelines that this operator runs, so that several can share a cluster, such as ``team=a``; all where empty."""
    address: str = "0.0.0.0:8080"
    """Where /healthz and /metrics listen."""
    retry_seconds: Annotated[float, Field(gt=0)] = 10
    """Wait before the first retry of a failed stage; doubles with each counted failure, up to ten minutes."""
    admission_seconds: Annotated[float, Field(gt=0)] = 300
    """How long a stage keeps what a queue has admitted of it while the rest waits; then it gives that back for a while."""
    progress_seconds: Annotated[float, Field(gt=0)] = 10
    """Between two looks at what a running stage prints."""
    resync_seconds: Annotated[float, Field(gt=0)] = 300
    """Every pipeline is looked at this often even when nothing happened."""
    stuck_seconds: Annotated[float, Field(gt=0)] = 300
    """/healthz fails when a pipeline has waited so long to be looked at, or when the regular look at all of them is late by as much."""
    workers: Annotated[int, Field(ge=1, le=64)] = 8
    """Pipelines reconciled at the same time."""


def load(path: str | None = None) -> OperatorConfig:
    """The configuration in ``path`` or the file that the environment names; the defaults without either. Raises ConfigError."""
    path = path or os.environ.get(environment.OPERATOR_CONFIG)
    if not path:
        return OperatorConfig()
    try:
        documents = read_yaml(path)
    except UsageError as error:
        raise ConfigError(str(error)) from error
    if not documents:
        return OperatorConfig()
    if len(documents) > 1:
        raise ConfigError(f"{path}: {len(documents)} documents, where one is read")
    [document] = documents
    try:
        return from_plain(OperatorConfig, document.value)
    except pydantic.ValidationError as error:
        raise ConfigError(mistakes(error, OperatorConfig, path, document.lines, document.texts)) from error
