"""What only a cluster needs: the part of a ``SteerLMPipeline`` that ``steerlm run`` on one machine passes over.

Every field is optional. Where one is absent, the operator's own configuration decides, so that a local manifest applies unchanged.
Nothing here changes what a stage computes, so nothing here is part of an input hash.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nemo_steerlm.pipeline import registry
from nemo_steerlm.pipeline.cluster_types import (
    DOMAIN_PATTERN,
    WORD_PATTERN,
    ImageReference,
    LabelKey,
    LabelValue,
    ObjectName,
    QualifiedName,
    Quantity,
    RelativePath,
    Seconds,
    SecretKeySpec,
    TolerationSpec,
)
from nemo_steerlm.pipeline.pod_spec import PodsSpec
from nemo_steerlm.pipeline.sources import Spec

MANAGED_BY = "steerlm.dev/operator"
"""``spec.managedBy`` of the resources that this project's operator acts on."""


class ImagesSpec(Spec):
    """Container images, one per role."""

    worker: ImageReference | None = None
    """Runs prepare, annotate, sample and evaluate; the operator's worker image by default."""
    train: ImageReference | None = None
    """Runs the trainings; needs NeMo. ``worker`` by default."""
    serve: ImageReference | None = None
    """Runs inference servers. ``worker`` by default."""
    vllm: ImageReference | None = None
    """vLLM's own, such as ``vllm/vllm-openai:TAG``, for servers whose engine it is."""
    pull_policy: Literal["IfNotPresent", "Always", "Never"] | None = None
    """When a node pulls them; IfNotPresent by default."""
    pull_secrets: Annotated[tuple[ObjectName, ...], Field(max_length=8)] = ()
    """Names of the Secrets, in this namespace, that allow pulling them."""


class ClaimTemplateSpec(Spec):
    """A PersistentVolumeClaim that the operator makes for this pipeline, named after it."""

    size: Quantity
    """How much, such as ``500Gi``."""
    storage_class_name: ObjectName | None = None
    """Storage class; the cluster's default one by default."""
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"] = "ReadWriteMany"
    """ReadWriteMany where stages may run on several nodes."""
    retain: bool = True
    """Whether the claim outlives the pipeline; false deletes data and models together with the resource."""


class ModelsClaimSpec(Spec):
    """A second claim that is only read: base models that several pipelines share."""

    claim_name: ObjectName
    """A PersistentVolumeClaim in this namespace, such as one of ``ReadOnlyMany``."""
    sub_path: RelativePath | None = None
    """Use only this folder of it."""


class StorageSpec(Spec):
    """Where data, models and results live: a claim that every stage mounts."""

    claim_name: ObjectName | None = None
    """A PersistentVolumeClaim in this namespace that exists already. Relative references of the manifest start at its root."""
    claim_template: ClaimTemplateSpec | None = None
    """Or one to make."""
    sub_path: RelativePath | None = None
    """Use only this folder of the claim."""
    directory: RelativePath | None = None
    """Work directory below that; ``runs/NAME`` by default. Pipelines that name the same one reuse each other's finished stages."""

    models: ModelsClaimSpec | None = None
    """A second claim, mounted read-only at ``/models`` for every stage: ``model.base: /models/llama-2-7b``."""

    @model_validator(mode="after")
    def _one_claim(self) -> StorageSpec:
        if self.claim_name and self.claim_template:
            raise ValueError("give claimName or claimTemplate, not both")
        return self


class AmountSpec(Spec):
    """What one container asks for. GPUs come from ``parallel.devices`` and ``servers.devices``."""

    cpu: Quantity | None = None
    """Processors, such as ``4`` or ``500m``."""
    memory: Quantity | None = None
    """Memory, request and limit alike, such as ``64Gi``."""
    shared_memory: Quantity | None = None
    """Size of ``/dev/shm``, which counts as memory."""


class ResourcesSpec(Spec):
    """Processors and memory, one entry per kind of work."""

    prepare: AmountSpec | None = None
    """The prepare stage."""
    train: AmountSpec | None = None
    """Each pod of a training."""
    annotate: AmountSpec | None = None
    """Each annotation or sampling client."""
    evaluate: AmountSpec | None = None
    """The evaluate stage."""
    servers: AmountSpec | None = None
    """Each inference server."""


class SchedulingSpec(Spec):
    """Where and when pods run."""

    queue_name: ObjectName | None = None
    """Kueue LocalQueue that admits this pipeline's Jobs and servers."""
    gang: Literal["None", "Volcano", "Coscheduling"] | None = None
    """Who starts all pods of a multi-node training together, or none of them."""
    device_resource: Annotated[str, Field(max_length=316, pattern=f"^(none|{DOMAIN_PATTERN}/{WORD_PATTERN})$")] | None = None
    """The extended resource one device is, such as ``nvidia.com/gpu``; ``none`` on clusters without accelerators."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of all pods."""
    node_selector: dict[LabelKey, LabelValue] = Field({}, max_length=32)
    """Labels a node must have."""
    tolerations: Annotated[tuple[TolerationSpec, ...], Field(max_length=32)] = ()
    """Taints the pods accept."""
    topology_key: LabelKey | None = None
    """Prefer to put the pods of one training into one domain of this node label, such as a rack."""


class SecretsSpec(Spec):
    """Credentials by reference. Each goes only to the pods that need it."""

    hugging_face: SecretKeySpec | None = None
    """HF_TOKEN of the prepare stage and of the trainings, which read ``hf:`` references."""
    wandb: SecretKeySpec | None = None
    """WANDB_API_KEY of the trainings."""
    servers: SecretKeySpec | None = None
    """STEERLM_API_KEY of the servers of annotate, bootstrap and evaluate, and of the stages that ask them.

    Without it they answer whoever reaches them: where the network enforces NetworkPolicies, the pipeline's own pods alone.
    """


class RunPolicySpec(Spec):
    """Retries, deadlines and clean-up."""

    backoff_limit: Annotated[int, Field(ge=0, le=100)] | None = None
    """How many failures of one stage are retried (2 by default). Preemption, eviction and node loss are retried without counting. A stage
    that has got further than before is forgiven what failed until then."""
    disruption_limit: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """How many preemptions, evictions and lost nodes in a row are retried where the stage gets no further (30 by default)."""
    retries_per_shard: Annotated[int, Field(ge=0, le=100)] | None = None
    """How often one annotation shard is retried before the stage fails (3 by default)."""
    active_deadline_seconds: Seconds | None = None
    """The pipeline fails when it has run so long; the count starts again on resume. None by default."""
    pending_deadline_seconds: Seconds | None = None
    """A stage fails when its pods have not started for so long: no image, no room, no quota. None by default."""
    grace_period_seconds: Annotated[int, Field(ge=1, le=86_400)] | None = None
    """What a stage's pods have between SIGTERM and SIGKILL (120 by default): a training ends its step and saves a checkpoint. Spot nodes
    give what their warning gives, whatever stands here: set ``saveEveryMinutes`` there."""
    stall_seconds: Seconds | None = None
    """A stage whose pods run but say nothing new for so long is stopped and tried again, as a disruption: a collective that lost a rank may
    hang for ever. Longer than loading the model, a validation and the export take. None by default."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31_536_000)] | None = None
    """Delete the finished pipeline after so long; kept by default."""
    job_ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31_536_000)] | None = None
    """Delete a finished stage's Job with its logs after so long (a day by default). If the operator did not see it end, the Job is made
    again and finds its results."""


class RestartSpec(Spec):
    """Run stages again: change ``token``, nothing else is needed."""

    token: Annotated[str, Field(min_length=1, max_length=63, pattern=f"^{WORD_PATTERN}$")]
    """Any new text, such as a date. The operator acts once on each."""
    from_stage: Annotated[str, Field(max_length=32, pattern=registry.pattern())] | None = None
    """Do this stage and all after it again, even those that succeeded. The stage that failed is tried again in any case."""


class ClusterFields(Spec):
    """Mixed into the pipeline's spec."""

    suspend: bool = False
    """Stop all pods and keep what is done; false again continues."""
    edits: Literal["WhileSuspended", "Redo"] = "WhileSuspended"
    """Fields that decide a result may change while the pipeline is suspended; Redo lets them change at any time, as under GitOps. Either
    way the stages that have become other ones are done again, and under Redo one that runs is stopped for it."""
    managed_by: QualifiedName = MANAGED_BY
    """Which controller acts on this resource; others leave it alone."""
    engine: Literal["Job", "JobSet"] | None = None
    """What a multi-node training becomes: a plain Job (default), or a JobSet where that is installed."""
    images: ImagesSpec | None = None
    """Container images; the operator's by default."""
    storage: StorageSpec | None = None
    """The claim; made from the operator's template by default."""
    resources: ResourcesSpec | None = None
    """Processors and memory; the operator's by default."""
    scheduling: SchedulingSpec | None = None
    """Where pods run; the operator's defaults fill what is absent."""
    pods: PodsSpec | None = None
    """More about pods, one entry a role; over the operator's own, as far as the operator allows it."""
    secrets: SecretsSpec | None = None
    """Credentials by reference."""
    run_policy: RunPolicySpec | None = None
    """Retries, deadlines and clean-up."""
    restart: RestartSpec | None = None
    """Run stages again."""
