"""Pod templates. Every pod here passes Pod Security *restricted* and mounts no service account token.

Users reach a fixed list of fields only; none of their text is run by a shell, and ``$`` in it is escaped so that Kubernetes does not
expand it to another variable's value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from nemo_steerlm.pipeline.cluster_spec import AmountSpec, ModelsClaimSpec
from nemo_steerlm.pipeline.cluster_types import SecretKeySpec
from steerlm_operator import names
from steerlm_operator.models import Object, Pipeline
from steerlm_operator.resources import patches, settings

MOUNT = "/data"
"""Where the claim is mounted. Relative references of a manifest start here."""
MODELS = "/models"
"""Where the second claim is mounted."""
TMP = "/tmp"  # noqa: S108 - the pod's own emptyDir
CONTAINER = "main"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Process:
    """What runs in a container."""

    program: str = "steerlm"
    args: Sequence[str]
    """Its arguments; taken literally."""
    indexed_args: Sequence[str] = ()
    """Further arguments of the operator's own, in which Kubernetes expands ``$(…)``."""
    image: str
    amount: AmountSpec
    devices: int = 0
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Taken literally."""
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Environment from the pod's own fields."""
    secrets: Mapping[str, SecretKeySpec] = dataclasses.field(default_factory=dict)
    labels: Mapping[str, str]
    role: str
    """A field of PodsSpec."""
    read_only: bool = False
    """Mount the claim read-only."""


def workdir(pipeline: Pipeline) -> str:
    """The work directory as the stages see it."""
    return f"{MOUNT}/{pipeline.storage.directory}"


def literal(text: str) -> str:
    """``text`` such that Kubernetes expands nothing in it. Every ``$``: with ``$(`` alone, ``$$(A)`` would become ``$`` and A's value."""
    return text.replace("$", "$$")


def template(pipeline: Pipeline, process: Process, engine: Object | None = None, **spec: object) -> Object:
    """A pod template. ``engine`` is a container that starts before the process; ``spec`` adds fields to the pod's spec, over these."""
    scheduling = pipeline.scheduling
    labels = dict(process.labels)
    pod: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            **_user(pipeline),
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": pipeline.grace_seconds,
        **({"initContainers": [engine]} if engine else {}),
        "containers": [container(pipeline, process)],
        "volumes": _volumes(pipeline, process),
    }
    if pipeline.images.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in pipeline.images.pull_secrets]
    if scheduling.priority_class_name:
        pod["priorityClassName"] = scheduling.priority_class_name
    if scheduling.node_selector:
        pod["nodeSelector"] = dict(scheduling.node_selector)
    if scheduling.tolerations:
        pod["tolerations"] = [toleration.model_dump(by_alias=True, exclude_none=True) for toleration in scheduling.tolerations]
    made: Object = {"metadata": {"labels": labels}, "spec": pod | spec}
    patches.apply(made, pipeline.pod(process.role), {key: value for key, value in labels.items() if key.startswith(names.DOMAIN)})
    return made


def _user(pipeline: Pipeline) -> Object:
    security = pipeline.config.security
    user: Object = {} if security.run_as_user is None else {"runAsUser": security.run_as_user}
    if security.fs_group is not None:
        user |= {"runAsGroup": security.fs_group, "fsGroup": security.fs_group, "fsGroupChangePolicy": "OnRootMismatch"}
    return user


def container(pipeline: Pipeline, process: Process, name: str = CONTAINER) -> Object:
    """One container of a pod."""
    config = pipeline.config
    env: list[Object] = [
        {"name": "HOME", "value": TMP},
        {"name": "XDG_CACHE_HOME", "value": f"{TMP}/cache" if process.read_only else f"{MOUNT}/.cache"},
        {"name": "MPLCONFIGDIR", "value": f"{TMP}/matplotlib"},
        {"name": "PYTHONUNBUFFERED", "value": "1"},
    ]
    env += [{"name": name, "value": literal(value)} for name, value in {**config.environment, **process.env}.items()]
    env += [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in process.fields.items()]
    env += [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key, "optional": False}}}
        for name, secret in process.secrets.items()
    ]
    claim: Object = {"name": "data", "mountPath": MOUNT, "readOnly": process.read_only}
    if pipeline.storage.sub_path:
        claim["subPath"] = pipeline.storage.sub_path
    mounts = [claim, {"name": "tmp", "mountPath": TMP}, {"name": "shm", "mountPath": "/dev/shm"}]  # noqa: S108 - where torch expects it
    if not process.read_only:
        if pipeline.storage.models:
            mounts.append(_models_mount(pipeline.storage.models))
        mounts.append({"name": "manifest", "mountPath": settings.FOLDER, "readOnly": True})
    return {
        "name": name,
        "image": process.image,
        "imagePullPolicy": pipeline.images.pull_policy,
        "command": [process.program],
        "args": [*map(literal, process.args), *process.indexed_args],
        "env": env,
        "resources": _resources(pipeline, process),
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }


def _models_mount(models: ModelsClaimSpec) -> Object:
    mount: Object = {"name": "models", "mountPath": MODELS, "readOnly": True}
    return mount | ({"subPath": models.sub_path} if models.sub_path else {})


def _resources(pipeline: Pipeline, process: Process) -> Object:
    requests: Object = {}
    limits: Object = {}
    if process.amount.cpu:
        requests["cpu"] = process.amount.cpu
    if process.amount.memory:
        requests["memory"] = limits["memory"] = process.amount.memory
    device = pipeline.scheduling.device_resource
    if process.devices and device and device != "none":
        limits[device] = str(process.devices)
    return {key: value for key, value in (("requests", requests), ("limits", limits)) if value}


def _volumes(pipeline: Pipeline, process: Process) -> list[Object]:
    shared: Object = {"medium": "Memory"}
    if process.amount.shared_memory:
        shared["sizeLimit"] = process.amount.shared_memory
    volumes: list[Object] = [
        {"name": "data", "persistentVolumeClaim": {"claimName": pipeline.storage.claim_name}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": shared},
    ]
    if not process.read_only:
        if models := pipeline.storage.models:
            volumes.append({"name": "models", "persistentVolumeClaim": {"claimName": models.claim_name, "readOnly": True}})
        volumes.append({"name": "manifest", "configMap": {"name": settings.name(pipeline)}})
    return volumes


def prefer_together(pipeline: Pipeline, labels: Mapping[str, str]) -> Object | None:
    """Affinity that prefers one topology domain for all pods with ``labels``, where the pipeline asks for it."""
    key = pipeline.scheduling.topology_key
    if not key:
        return None
    term = {"topologyKey": key, "labelSelector": {"matchLabels": {k: v for k, v in labels.items() if k.startswith(names.DOMAIN)}}}
    return {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}}
