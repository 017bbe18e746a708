"""The resource as the operator works with it: parsed once at the border, defaults filled in, no raw dict beyond this point."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.core.processes import GRACE_SECONDS
from nemo_steerlm.pipeline import manifest as manifests
from nemo_steerlm.pipeline.cluster_spec import (
    AmountSpec,
    ClaimTemplateSpec,
    ClusterFields,
    ImagesSpec,
    ModelsClaimSpec,
    ResourcesSpec,
    RestartSpec,
    RunPolicySpec,
    SchedulingSpec,
    SecretsSpec,
)
from nemo_steerlm.pipeline.cluster_status import ImagesStatus
from nemo_steerlm.pipeline.manifest import SteerLMPipeline
from nemo_steerlm.pipeline.pod_spec import ROLES, PodSpec, PodsSpec
from nemo_steerlm.pipeline.sources import Spec
from nemo_steerlm.pipeline.stages import Stage, stages
from steerlm_operator import names
from steerlm_operator.config import OperatorConfig

FieldsT = TypeVar("FieldsT", bound=Spec)

Object = dict[str, Any]
"""A Kubernetes object as JSON."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """An image for each role, all of them known."""

    worker: str
    train: str
    serve: str
    vllm: str | None
    """Known wherever a server's engine is vLLM."""
    pull_policy: str
    pull_secrets: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """The claim and the folders in it."""

    claim_name: str
    template: ClaimTemplateSpec | None
    """Set where the operator makes the claim."""
    sub_path: str | None
    directory: str
    """The work directory, relative to the mount."""
    models: ModelsClaimSpec | None
    """A second claim that is only read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
    """One valid resource."""

    namespace: str
    name: str
    uid: str
    generation: int
    manifest: SteerLMPipeline
    graph: tuple[Stage, ...]
    config: OperatorConfig
    images: Images
    storage: Storage
    resources: ResourcesSpec
    pods: PodsSpec
    scheduling: SchedulingSpec
    run_policy: RunPolicySpec
    secrets: SecretsSpec
    suspend: bool
    jobset: bool
    restart: RestartSpec | None

    @property
    def backoff_limit(self) -> int:
        """Counted failures a stage may have before it fails for good."""
        return self.run_policy.backoff_limit if self.run_policy.backoff_limit is not None else 2

    @property
    def grace_seconds(self) -> int:
        """Between SIGTERM and SIGKILL of a stage's pods."""
        return self.run_policy.grace_period_seconds or int(GRACE_SECONDS)

    @property
    def owner(self) -> Object:
        """The ownerReference of every child."""
        return {
            "apiVersion": manifests.API_VERSION,
            "kind": manifests.KIND,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            # False: true would need the right to update finalizers of pipelines.
            "blockOwnerDeletion": False,
        }

    def labels(self, **more: str) -> dict[str, str]:
        """Labels of a child; keyword arguments are ``stage``, ``attempt``, ``component`` and ``role``."""
        keys = {"stage": names.STAGE, "attempt": names.ATTEMPT, "component": names.COMPONENT, "role": names.ROLE}
        return {
            "app.kubernetes.io/name": "steerlm",
            "app.kubernetes.io/managed-by": names.FIELD_MANAGER,
            names.PIPELINE: self.name,
            names.PIPELINE_UID: self.uid,
            **{keys[key]: value for key, value in more.items()},
        }

    def pod(self, role: str) -> PodSpec:
        """What the pods of one role have more, a field of PodsSpec."""
        found: PodSpec | None = getattr(self.pods, role)
        return found or PodSpec()

    def amount(self, kind: str) -> AmountSpec:
        """Processors and memory of one kind of work, a field of ResourcesSpec."""
        amount: AmountSpec | None = getattr(self.resources, kind)
        return amount or AmountSpec()


def parse(resource: Mapping[str, Any], config: OperatorConfig) -> Pipeline:
    """A resource from the API server. Raises UsageError with one line a mistake."""
    metadata = resource["metadata"]
    body = {
        "apiVersion": manifests.API_VERSION,
        "kind": manifests.KIND,
        "metadata": {"name": metadata["name"]},
        "spec": resource.get("spec") or {},
    }
    manifest = manifests.parse(body, "the resource")
    spec = manifest.spec
    graph = stages(manifest)
    if spec.restart and spec.restart.from_stage and spec.restart.from_stage not in [stage.name for stage in graph]:
        known = ", ".join(stage.name for stage in graph)
        raise UsageError(f"the resource: spec.restart.fromStage: this pipeline has no stage {spec.restart.from_stage}; known: {known}")
    images = _images(spec.images or ImagesSpec(), config.images)
    if images.vllm is None and (spec.annotate.servers.engine.vllm or (spec.serve.enabled and spec.serve.engine.vllm)):
        raise UsageError("the resource: spec.images.vllm: an engine is vllm, and neither the pipeline nor the operator names its image")
    return Pipeline(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        manifest=manifest,
        graph=graph,
        config=config,
        images=images,
        storage=_storage(spec, config, metadata["name"]),
        resources=_filled(spec.resources or ResourcesSpec(), config.resources),
        pods=_filled(_allowed(spec.pods or PodsSpec(), config), config.pods),
        scheduling=_filled(spec.scheduling or SchedulingSpec(), config.scheduling),
        run_policy=_filled(spec.run_policy or RunPolicySpec(), config.run_policy),
        secrets=spec.secrets or SecretsSpec(),
        suspend=spec.suspend,
        jobset=spec.engine == "JobSet",
        restart=spec.restart,
    )


def _allowed(given: PodsSpec, config: OperatorConfig) -> PodsSpec:
    """``given``, if the operator lets pipelines set all of it. Raises UsageError that names what it does not."""
    wrong = []
    for role in ROLES:
        patch: PodSpec = getattr(given, role) or PodSpec()
        for name in sorted(patch.model_fields_set):
            field = str(type(patch).model_fields[name].alias)
            if field not in config.pod_fields and getattr(patch, name) != type(patch).model_fields[name].get_default():
                wrong.append(f"spec.pods.{role}.{field}: this operator lets no pipeline set it (its setting podFields); ask who runs it")
        own = sorted(name for name in patch.env if name.startswith(("STEERLM_", "PET_")))
        wrong += [f"spec.pods.{role}.env.{name}: the operator sets this itself" for name in own]
        domains = (f"{names.DOMAIN}/", "kubernetes.io/", "k8s.io/")
        reserved = sorted(key for key in patch.labels if any(domain in key for domain in domains))
        wrong += [f"spec.pods.{role}.labels: {key} is not yours to set" for key in reserved]
    if wrong:
        raise UsageError("\n".join(f"the resource: {line}" for line in wrong))
    return given


def _filled(given: FieldsT, defaults: FieldsT) -> FieldsT:
    """``given``, with the fields it leaves out, at any depth, taken from ``defaults``."""
    merged = _merge(
        given.model_dump(by_alias=True, exclude_none=True, exclude_unset=True), defaults.model_dump(by_alias=True, exclude_none=True)
    )
    return type(given).model_validate(merged)


def _merge(given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    merged = dict(defaults)
    for key, value in given.items():
        both = isinstance(value, dict) and isinstance(defaults.get(key), dict)
        merged[key] = _merge(value, defaults[key]) if both else value
    return merged


def with_images(pipeline: Pipeline, pinned: ImagesStatus) -> Pipeline:
    """The pipeline with the images that it started with; those that its own spec names come first."""
    given = pipeline.manifest.spec.images or ImagesSpec()
    named = _images(given, ImagesSpec.model_validate(pinned.model_dump()))
    images = dataclasses.replace(pipeline.images, worker=named.worker, train=named.train, serve=named.serve, vllm=named.vllm)
    return dataclasses.replace(pipeline, images=images)


def _images(given: ImagesSpec, defaults: ImagesSpec) -> Images:
    # A pipeline that names its worker means it for the other roles too, before the operator's images for those.
    worker = given.worker or defaults.worker or ""
    return Images(
        worker=worker,
        train=given.train or given.worker or defaults.train or worker,
        serve=given.serve or given.worker or defaults.serve or worker,
        vllm=given.vllm or defaults.vllm,
        pull_policy=given.pull_policy or defaults.pull_policy or "IfNotPresent",
        pull_secrets=given.pull_secrets or defaults.pull_secrets,
    )


def _storage(spec: ClusterFields, config: OperatorConfig, name: str) -> Storage:
    given = spec.storage
    claims = given if given and (given.claim_name or given.claim_template) else config.storage
    return Storage(
        claim_name=claims.claim_name or names.claim(name),
        template=None if claims.claim_name else claims.claim_template,
        sub_path=given.sub_path if given else config.storage.sub_path,
        directory=(given.directory if given else None) or f"runs/{name}",
        models=(given.models if given else None) or config.storage.models,
    )
