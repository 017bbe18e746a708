"""Inference servers: those of a stage, and the one that stays. A Deployment and a headless Service each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from nemo_steerlm.core import environment
from nemo_steerlm.pipeline.cluster_types import SecretKeySpec
from nemo_steerlm.pipeline.sources import Spec
from nemo_steerlm.pipeline.stages import CHECKPOINT, MODEL_FOLDER, ServerNeed, Stage
from steerlm_operator import names
from steerlm_operator.models import Object, Pipeline
from steerlm_operator.resources import engines, pods
from steerlm_operator.resources.work import SERVER_PORT

GRACE_SECONDS = 30
"""Between SIGTERM and SIGKILL."""
DRAIN_SECONDS = GRACE_SECONDS - 10
"""For requests in flight. What is left is for telling those that are not ready, and for the process to end."""


def url(pipeline: Pipeline, service: str) -> str:
    """The address of a Service of this pipeline inside the cluster."""
    return f"http://{service}.{pipeline.namespace}.svc:{SERVER_PORT}"


def labels(pipeline: Pipeline, stage: Stage, need: ServerNeed, attempt: int) -> dict[str, str]:
    """Labels of a stage's servers of one role."""
    return pipeline.labels(stage=stage.name, attempt=str(attempt), component=names.SERVER, role=need.role)


def selector(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels that tell these pods from all others; never a user's own."""
    return {key: value for key, value in labels.items() if key.startswith(names.DOMAIN)}


def build(pipeline: Pipeline, stage: Stage, need: ServerNeed, attempt: int) -> list[Object]:
    """The servers of one role that a stage needs."""
    own = names.server(pipeline.name, stage.name, need.role, attempt)
    return _server(
        pipeline,
        own,
        labels(pipeline, stage, need, attempt),
        need,
        token=pipeline.secrets.servers,
        # By the environment, which an image of an older version can do without. Records may be longer than those that the model was taught.
        env={environment.MAX_MODEL_LEN: "base"},
    )


def build_serve(pipeline: Pipeline, stage: str) -> list[Object]:
    """The server of the finished model, in the folder of ``stage``: evaluate has that of the model which it found best.

    Its pods are replaced one by one: where no GPU is spare, each gives up its own before the next starts.
    """
    wanted = pipeline.manifest.spec.serve
    need = ServerNeed(role="steer", stage=stage, replicas=wanted.replicas, devices=wanted.devices, engine=wanted.engine)
    service, deployment = _server(
        pipeline,
        names.serve(pipeline.name),
        pipeline.labels(component=names.SERVE, role=need.role),
        need,
        token=wanted.token,
        page=wanted.page,
    )
    surge = wanted.max_surge
    rolling = {"maxSurge": surge, "maxUnavailable": 0 if surge else 1}
    deployment["spec"]["strategy"] = {"type": "RollingUpdate", "rollingUpdate": rolling}
    if wanted.autoscaled:
        del deployment["spec"]["replicas"]
    elif wanted.replicas < 2:
        return [service, deployment]
    return [service, _budget(service, selector(service["metadata"]["labels"])), deployment]


def _budget(service: Object, selected: Mapping[str, str]) -> Object:
    """Drains of nodes take the servers one by one too."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": service["metadata"],
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": dict(selected)}},
    }


def _server(
    pipeline: Pipeline,
    own: str,
    labels: Mapping[str, str],
    need: ServerNeed,
    *,
    token: SecretKeySpec | None,
    page: bool = False,
    env: Mapping[str, str] | None = None,
) -> list[Object]:
    metadata = {"name": own, "namespace": pipeline.namespace, "labels": dict(labels), "ownerReferences": [pipeline.owner]}
    engine, folder = need.engine, f"{pods.workdir(pipeline)}/{need.stage}"
    args = ["serve", f"{folder}/{CHECKPOINT if engine.megatron else MODEL_FOLDER}", "--host", "0.0.0.0", "--port", str(SERVER_PORT)]  # noqa: S104
    args += ["--drain-seconds", str(DRAIN_SECONDS)]
    args.append("--page" if page else "--no-page")
    if token is None:
        args.append("--insecure")
    args += engines.options(need)
    process = pods.Process(
        args=args,
        env=env or {},
        secrets=({} if token is None else {environment.API_KEY: token}) | engines.secrets(need, token),
        image=pipeline.images.train if engine.megatron else pipeline.images.serve,
        amount=engines.FRONT if engine.vllm else pipeline.amount("servers"),
        devices=0 if engine.vllm or engine.external else need.devices,
        labels=labels,
        role="serve",
        read_only=True,
    )
    beside = engines.vllm(pipeline, need, f"{folder}/{MODEL_FOLDER}", labels, token) if engine.vllm else None
    template = pods.template(pipeline, process, beside, terminationGracePeriodSeconds=GRACE_SECONDS)
    template["spec"]["containers"][0] |= {
        "ports": [{"name": "http", "containerPort": SERVER_PORT, "protocol": "TCP"}],
        "startupProbe": engines.probe("/health/ready", "http", failures=engines.starting(need)),
        "readinessProbe": engines.probe("/health/ready", "http", failures=2),
        "livenessProbe": engines.probe("/health/live", "http", failures=6),
    }
    runs = {names.RUNS: _runs(pipeline, need, token=token, page=page)}
    deployment_labels = dict(labels)
    if pipeline.scheduling.queue_name:
        deployment_labels[names.QUEUE_NAME] = pipeline.scheduling.queue_name
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {**metadata, "labels": deployment_labels, "annotations": runs},
        "spec": {
            "replicas": need.replicas,
            "selector": {"matchLabels": selector(labels)},
            # Recreate: a second copy of the model next to the first may find no GPU.
            "strategy": {"type": "Recreate"},
            "progressDeadlineSeconds": need.startup_timeout_seconds + 60,
            "revisionHistoryLimit": 1,
            "template": template,
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            # Headless: a client that opens a connection gets one of the ready servers from DNS; no proxy pins all to one.
            "clusterIP": "None",
            "selector": selector(labels),
            "ports": [{"name": "http", "port": SERVER_PORT, "targetPort": "http", "protocol": "TCP"}],
        },
    }
    return [service, deployment]


def _runs(pipeline: Pipeline, need: ServerNeed, *, token: SecretKeySpec | None, page: bool) -> str:
    """A hash of what people and the chart say of a server, the number of its pods left out.

    Not of the pod that follows from it: that is another one with every version of the operator, and what answers would stop for that.
    """
    config = pipeline.config
    said = {
        "image": [engines.image(pipeline, need), pipeline.images.serve, pipeline.images.pull_policy, *pipeline.images.pull_secrets],
        "model": [need.role, need.stage, need.devices, need.startup_timeout_seconds],
        "storage": [pipeline.storage.claim_name, pipeline.storage.sub_path, pipeline.storage.directory],
        "token": token and [token.name, token.key],
        "page": page,
        "engine": _dumped(need.engine),
        "resources": _dumped(pipeline.amount("servers")),
        "scheduling": _dumped(pipeline.scheduling),
        "pods": _dumped(pipeline.pod("serve")),
        "environment": dict(config.environment),
        "security": _dumped(config.security),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def _dumped(spec: Spec) -> Object:
    """Without defaults: a new field at its default is no change."""
    dumped: Object = spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    return dumped
