"""What a pipeline may say of its pods beyond processors, memory and placement: an allow list of fields, never a pod's whole spec.

Which of them a user may set is the operator's to say (``config.podFields``); the operator's own defaults (``config.pods``) may set all.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nemo_steerlm.pipeline.cluster_types import (
    DOMAIN_PATTERN,
    WORD_PATTERN,
    LabelKey,
    LabelValue,
    ObjectName,
    Quantity,
    RelativePath,
    TolerationSpec,
)
from nemo_steerlm.pipeline.sources import Spec

EnvironmentName = Annotated[str, Field(min_length=1, max_length=256, pattern="^[A-Za-z_][A-Za-z0-9_]*$")]
LongText = Annotated[str, Field(max_length=4096)]
ExtendedResource = Annotated[str, Field(max_length=316, pattern=f"^(hugepages-[0-9]+[KMG]i|{DOMAIN_PATTERN}/{WORD_PATTERN})$")]
AbsolutePath = Annotated[str, Field(min_length=2, max_length=512, pattern=r"^(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+$")]
Address = Annotated[str, Field(min_length=2, max_length=45, pattern=r"^[0-9a-fA-F.:]+$")]


class SourceSpec(Spec):
    """Where more environment comes from: give one of the two."""

    secret: ObjectName | None = None
    """A Secret of this namespace."""
    config_map: ObjectName | None = None
    """A ConfigMap of this namespace."""

    @model_validator(mode="after")
    def _one(self) -> SourceSpec:
        if (self.secret is None) == (self.config_map is None):
            raise ValueError("give exactly one of secret and configMap")
        return self


class VolumeSpec(Spec):
    """A volume and where it is mounted. Nodes' own folders are not offered."""

    name: Annotated[str, Field(min_length=1, max_length=63, pattern="^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    """Its name in the pod."""
    mount_path: AbsolutePath
    """Where."""
    sub_path: RelativePath | None = None
    """Only this folder or file of it."""
    config_map: ObjectName | None = None
    """A ConfigMap, such as one with the certificates of a private authority."""
    secret: ObjectName | None = None
    """A Secret."""
    claim_name: ObjectName | None = None
    """A PersistentVolumeClaim."""
    empty_dir: Quantity | None = None
    """An empty folder of this size on the node."""
    writable: bool = False
    """Whether pods may write to a claim; they always may to an empty folder."""

    @model_validator(mode="after")
    def _one(self) -> VolumeSpec:
        if sum(source is not None for source in (self.config_map, self.secret, self.claim_name, self.empty_dir)) != 1:
            raise ValueError("give exactly one of configMap, secret, claimName and emptyDir")
        return self


class NodeLabelSpec(Spec):
    """What a label of a node has to be."""

    key: LabelKey
    """The label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = "In"
    """How it is compared."""
    values: Annotated[tuple[LabelValue, ...], Field(max_length=32)] = ()
    """With what; none for Exists and DoesNotExist."""


class SpreadSpec(Spec):
    """Pods of one stage, or servers of one role, spread over the domains of a node label."""

    topology_key: LabelKey
    """The label, such as ``topology.kubernetes.io/zone``."""
    max_skew: Annotated[int, Field(ge=1, le=1024)] = 1
    """Pods that one domain may have more than another."""
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"] = "ScheduleAnyway"
    """What where that cannot be."""


class DnsSpec(Spec):
    """Name servers beside or instead of the cluster's."""

    policy: Literal["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"] | None = None
    """Kubernetes' ``dnsPolicy``; ClusterFirstWithHostNet by default for pods on their node's network."""
    nameservers: Annotated[tuple[Address, ...], Field(max_length=3)] = ()
    """Their addresses."""
    searches: Annotated[tuple[Annotated[str, Field(max_length=253)], ...], Field(max_length=32)] = ()
    """Domains to look a short name up in."""


class PodSpec(Spec):
    """What is added to the pods of one role."""

    env: dict[EnvironmentName, LongText] = Field({}, max_length=64)
    """Environment. Names that begin with ``STEERLM_`` or ``PET_`` are the operator's."""
    env_from: Annotated[tuple[SourceSpec, ...], Field(max_length=16)] = ()
    """Environment from Secrets and ConfigMaps."""
    resources: dict[ExtendedResource, Quantity] = Field({}, max_length=16)
    """Extended resources for each pod, such as ``rdma/hca``, ``vpc.amazonaws.com/efa``, ``hugepages-2Mi`` or ``nvidia.com/mig-3g.40gb``."""
    ephemeral_storage: Quantity | None = None
    """Room on the node's own disk, request and limit alike."""
    guaranteed: bool = False
    """Limit processors to what is requested too: the pod gets the class Guaranteed and, with a static CPU manager, cores of its own."""
    volumes: Annotated[tuple[VolumeSpec, ...], Field(max_length=16)] = ()
    """Volumes and their mounts."""
    labels: dict[LabelKey, LabelValue] = Field({}, max_length=32)
    """Labels."""
    annotations: dict[LabelKey, LongText] = Field({}, max_length=32)
    """Annotations, such as the networks of a multi-network pod."""
    node_selector: dict[LabelKey, LabelValue] = Field({}, max_length=32)
    """Labels a node must have, beside those of ``scheduling``."""
    node_labels: Annotated[tuple[NodeLabelSpec, ...], Field(max_length=16)] = ()
    """The same as comparisons, all of which must hold."""
    tolerations: Annotated[tuple[TolerationSpec, ...], Field(max_length=32)] = ()
    """Taints the pods accept, beside those of ``scheduling``."""
    spread: Annotated[tuple[SpreadSpec, ...], Field(max_length=8)] = ()
    """Topology spread."""
    priority_class_name: ObjectName | None = None
    """PriorityClass, instead of that of ``scheduling``."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass, such as ``nvidia``."""
    image_pull_secrets: Annotated[tuple[ObjectName, ...], Field(max_length=8)] = ()
    """Secrets that allow pulling images, beside those of ``images`` and the operator."""
    dns: DnsSpec | None = None
    """Name servers."""
    service_account_name: ObjectName | None = None
    """ServiceAccount, for the identities that clouds give by it (IRSA, Workload Identity). Its token is not mounted."""
    host_network: bool = False
    """Use the node's network; Pod Security *privileged* only."""
    capabilities: Annotated[tuple[Literal["IPC_LOCK", "SYS_NICE", "SYS_RESOURCE", "NET_RAW"], ...], Field(max_length=4)] = ()
    """Linux capabilities, such as IPC_LOCK for RDMA; Pod Security *privileged* only."""


class PodsSpec(Spec):
    """One entry a role."""

    train: PodSpec | None = None
    """Pods of the trainings."""
    serve: PodSpec | None = None
    """Inference servers, those of a stage and the one that stays."""
    annotate: PodSpec | None = None
    """Annotation shards."""
    client: PodSpec | None = None
    """prepare, bootstrap-N-sample and evaluate."""


ROLES = ("train", "serve", "annotate", "client")
EVERYBODY_MAY = (
    "env", "envFrom", "resources", "ephemeralStorage", "guaranteed", "volumes", "labels", "annotations", "nodeSelector", "nodeLabels",
    "tolerations", "spread", "priorityClassName", "imagePullSecrets", "dns",
)  # fmt: skip
"""Fields that a pod may have under Pod Security *restricted*, and that give it nobody else's identity."""
