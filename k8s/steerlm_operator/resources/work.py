"""A stage's own objects: mostly one Job; an Indexed Job and a headless Service for a multi-node training; an Indexed Job of shards."""

from __future__ import annotations

from collections.abc import Mapping

from nemo_steerlm.core import environment
from nemo_steerlm.core.errors import EXIT_TERMINATED, PERMANENT_EXIT_CODES
from nemo_steerlm.pipeline.stages import Stage
from nemo_steerlm.pipeline.stages.stage import Credential
from steerlm_operator import names
from steerlm_operator.models import Object, Pipeline
from steerlm_operator.resources import pods, settings

RENDEZVOUS_PORT = 29_500
SERVER_PORT = 8_000
_CREDENTIALS: Mapping[Credential, str] = {"hugging_face": environment.HUGGING_FACE_TOKEN, "wandb": environment.WANDB_KEY}
"""The environment variable of each credential."""


def pod_count(stage: Stage, *, merge: bool = False) -> int:
    """Pods of one attempt: a node each for a training, a shard each for annotation."""
    if merge:
        return 1
    return stage.parallel.nodes * stage.shards


def name(pipeline: Pipeline, stage: Stage, attempt: int, *, merge: bool = False) -> str:
    """The name of the attempt's Job; also of its JobSet, headless Service and PodGroup."""
    jobset = uses_jobset(pipeline, stage)
    return names.attempt(pipeline.name, stage.name, attempt, pods=pod_count(stage, merge=merge), merge=merge, jobset=jobset)


def job_name(pipeline: Pipeline, stage: Stage, attempt: int, *, merge: bool = False) -> str:
    """The name of the batch Job that does the work: the JobSet's child where there is one."""
    own = name(pipeline, stage, attempt, merge=merge)
    return f"{own}-{names.JOBSET_JOB}-0" if uses_jobset(pipeline, stage) else own


def uses_jobset(pipeline: Pipeline, stage: Stage) -> bool:
    """Whether this stage is emitted as a JobSet."""
    return pipeline.jobset and stage.parallel.nodes > 1


def build(
    pipeline: Pipeline, stage: Stage, attempt: int, *, servers: Mapping[str, str], salt: str | None = None, merge: bool = False
) -> list[Object]:
    """Everything one attempt of a stage needs, in the order to apply it, without the servers.

    ``servers`` has an address for each role; ``salt`` makes the stage run although its outputs are there.
    """
    own = name(pipeline, stage, attempt, merge=merge)
    labels = pipeline.labels(stage=stage.name, attempt=str(attempt), component=names.WORK)
    job = _job(pipeline, stage, own, labels, servers=servers, salt=salt, merge=merge)
    objects: list[Object] = []
    nodes = 1 if merge else stage.parallel.nodes
    if nodes > 1:
        if group := _pod_group(pipeline, own, labels, nodes):
            objects.append(group)
        if uses_jobset(pipeline, stage):
            return [*objects, _jobset(own, labels, job)]
        objects.append(_headless_service(pipeline, own, labels))
    return [*objects, job]


def _metadata(pipeline: Pipeline, name: str, labels: Mapping[str, str]) -> Object:
    return {"name": name, "namespace": pipeline.namespace, "labels": dict(labels), "ownerReferences": [pipeline.owner]}


def _job(
    pipeline: Pipeline,
    stage: Stage,
    own: str,
    labels: Mapping[str, str],
    *,
    servers: Mapping[str, str],
    salt: str | None,
    merge: bool,
) -> Object:
    count = pod_count(stage, merge=merge)
    nodes = 1 if merge else stage.parallel.nodes
    sharded = not merge and stage.shards > 1
    process = _process(pipeline, stage, own, labels, servers=servers, salt=salt, merge=merge)
    more: Object = {"restartPolicy": "Never"}
    if nodes > 1:
        more["subdomain"] = own
        more |= _gang(pipeline)
    template = pods.template(pipeline, process, **more)
    if nodes > 1:
        if affinity := pods.prefer_together(pipeline, labels):
            template["spec"]["affinity"] = {**template["spec"].get("affinity", {}), **affinity}
        _join_gang(pipeline, own, template)
    spec: Object = {
        "completionMode": "Indexed" if count > 1 else "NonIndexed",
        "completions": count,
        "parallelism": count,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": _failure_rules(sharded=sharded)},
        "template": template,
    }
    if sharded:
        retries = pipeline.run_policy.retries_per_shard
        spec |= {"backoffLimitPerIndex": 3 if retries is None else retries, "maxFailedIndexes": 0}
    else:
        spec["backoffLimit"] = 0
    if (ttl := pipeline.run_policy.job_ttl_seconds_after_finished) is not None:
        spec["ttlSecondsAfterFinished"] = ttl
    metadata = _metadata(pipeline, own, labels)
    if pipeline.scheduling.queue_name:
        metadata["labels"][names.QUEUE_NAME] = pipeline.scheduling.queue_name
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def _failure_rules(*, sharded: bool) -> list[Object]:
    """Disruptions first, so that a preempted pod that exits 143 or 137 is not taken for a failure of its own."""
    disrupted, wrong = ("Ignore", "FailIndex") if sharded else ("FailJob", "FailJob")

    def exits(action: str, *codes: int) -> Object:
        return {"action": action, "onExitCodes": {"containerName": pods.CONTAINER, "operator": "In", "values": sorted(codes)}}

    return [
        {"action": disrupted, "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        exits(disrupted, EXIT_TERMINATED),
        exits(wrong, *PERMANENT_EXIT_CODES),
    ]


def _process(
    pipeline: Pipeline,
    stage: Stage,
    own: str,
    labels: Mapping[str, str],
    *,
    servers: Mapping[str, str],
    salt: str | None,
    merge: bool,
) -> pods.Process:
    args = stage.command(settings.PATH, pods.workdir(pipeline))
    indexed: list[str] = []
    if merge:
        args.append("--merge")
    elif stage.shards > 1:
        indexed = ["--shard", f"$(JOB_COMPLETION_INDEX)/{stage.shards}"]
    for role, url in sorted(servers.items()):
        args += ["--server", f"{role}={url}"]
    env = {environment.TERMINATION_LOG: "/dev/termination-log", environment.FILES: pods.MOUNT, environment.INPUTS_FINISHED: "1"}
    env[environment.WORK_TMP] = "1"
    env[environment.GRACE] = str(pipeline.grace_seconds)
    if salt:
        env[environment.SALT] = salt
    fields = {}
    if not merge and stage.parallel.nodes > 1:
        env |= _rendezvous(pipeline, stage, own)
        fields[environment.NODE_RANK] = f"metadata.annotations['{names.COMPLETION_INDEX}']"
    secrets = {_CREDENTIALS[name]: secret for name in stage.credentials if (secret := getattr(pipeline.secrets, name))}
    if servers and pipeline.secrets.servers:
        secrets[environment.API_KEY] = pipeline.secrets.servers
    return pods.Process(
        args=args,
        indexed_args=indexed,
        image=getattr(pipeline.images, stage.image),
        amount=pipeline.amount(stage.resources),
        devices=stage.devices,
        env=env,
        fields=fields,
        secrets=secrets,
        labels=labels,
        role=_role(stage),
    )


def _role(stage: Stage) -> str:
    if stage.training:
        return "train"
    return "annotate" if stage.kind == "annotate" else "client"


def _rendezvous(pipeline: Pipeline, stage: Stage, own: str) -> dict[str, str]:
    """Static rendezvous, which torchrun reads from the environment: no etcd, no c10d election, one fixed master."""
    first = f"{own}-{names.JOBSET_JOB}-0-0" if uses_jobset(pipeline, stage) else f"{own}-0"
    return {
        environment.NODES: str(stage.parallel.nodes),
        environment.PROCESSES_PER_NODE: str(stage.parallel.devices),
        environment.RENDEZVOUS_BACKEND: "static",
        environment.MASTER_ADDRESS: f"{first}.{own}.{pipeline.namespace}.svc",
        environment.MASTER_PORT: str(RENDEZVOUS_PORT),
    }


def _headless_service(pipeline: Pipeline, own: str, labels: Mapping[str, str]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(pipeline, own, labels),
        "spec": {
            "clusterIP": "None",
            # Ranks look each other up before any of them can be ready.
            "publishNotReadyAddresses": True,
            "selector": {names.JOB_NAME: own},
            "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT, "targetPort": RENDEZVOUS_PORT, "protocol": "TCP"}],
        },
    }


def _jobset(own: str, labels: Mapping[str, str], job: Object) -> Object:
    metadata = job["metadata"]
    ttl = job["spec"].pop("ttlSecondsAfterFinished", None)
    spec: Object = {
        # The operator counts attempts itself, the same way for every engine.
        "failurePolicy": {"maxRestarts": 0},
        "network": {"enableDNSHostnames": True, "subdomain": own, "publishNotReadyAddresses": True},
        "replicatedJobs": [
            {"name": names.JOBSET_JOB, "replicas": 1, "template": {"metadata": {"labels": dict(labels)}, "spec": job["spec"]}}
        ],
    }
    del job["spec"]["template"]["spec"]["subdomain"]  # JobSet sets it
    if ttl is not None:
        spec["ttlSecondsAfterFinished"] = ttl
    return {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": metadata, "spec": spec}


def _pod_group(pipeline: Pipeline, own: str, labels: Mapping[str, str], nodes: int) -> Object | None:
    versions = {"Volcano": "scheduling.volcano.sh/v1beta1", "Coscheduling": "scheduling.x-k8s.io/v1alpha1"}
    version = versions.get(pipeline.scheduling.gang or "None")
    if not version:
        return None
    spec: Object = {"minMember": nodes}
    if pipeline.scheduling.gang == "Volcano" and pipeline.scheduling.priority_class_name:
        spec["priorityClassName"] = pipeline.scheduling.priority_class_name
    return {"apiVersion": version, "kind": "PodGroup", "metadata": _metadata(pipeline, own, labels), "spec": spec}


def _gang(pipeline: Pipeline) -> Object:
    schedulers = {"Volcano": "volcano", "Coscheduling": pipeline.config.coscheduling_scheduler_name}
    scheduler = schedulers.get(pipeline.scheduling.gang or "None")
    return {"schedulerName": scheduler} if scheduler else {}


def _join_gang(pipeline: Pipeline, own: str, template: Object) -> None:
    if pipeline.scheduling.gang == "Volcano":
        template["metadata"].setdefault("annotations", {}).update({"scheduling.k8s.io/group-name": own})
    elif pipeline.scheduling.gang == "Coscheduling":
        template["metadata"]["labels"]["scheduling.x-k8s.io/pod-group"] = own
