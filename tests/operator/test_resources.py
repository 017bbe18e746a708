"""Every object that a pipeline makes: valid, restricted, deterministic, and understood by the command line it calls."""

import json

import kubernetes_validate
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from steerlm_operator import names
from steerlm_operator.config import OperatorConfig
from steerlm_operator.reconcile import objects
from steerlm_operator.resources import pods, settings, work

from nemo_steerlm.cli.main import application
from tests.operator import golden

VARIANTS = {
    "full": {},
    "one node, one shard": {"trainValue": {"globalBatchSize": 8}, "annotate": {"shards": 1}},
    "all options": {
        "engine": "Job",
        "images": {"worker": "w:1", "train": "t:1", "serve": "s:1", "pullSecrets": ["registry"]},
        "storage": {"claimName": "shared", "subPath": "team/a", "directory": "runs/x"},
        "scheduling": {
            "queueName": "queue", "gang": "Volcano", "priorityClassName": "high", "nodeSelector": {"a": "b"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}], "topologyKey": "rack",
        },
        "secrets": {"wandb": {"name": "w", "key": "k"}, "huggingFace": {"name": "h", "key": "k"}, "servers": {"name": "s", "key": "k"}},
        "runPolicy": {"retriesPerShard": 5, "jobTtlSecondsAfterFinished": 60},
        "resources": {"train": {"cpu": "4", "memory": "8Gi", "sharedMemory": "1Gi"}},
    },
    "coscheduling": {"scheduling": {"gang": "Coscheduling"}},
    "jobset": {"engine": "JobSet"},
}  # fmt: skip
BUILT_IN = ("Job", "Deployment", "Service", "ConfigMap", "NetworkPolicy", "PersistentVolumeClaim")


@pytest.fixture(params=VARIANTS, ids=str)
def made(request, pipeline):
    return objects(pipeline(**VARIANTS[request.param]))


def templates(made):
    for item in made:
        spec = item.get("spec", {})
        if item["kind"] == "JobSet":
            spec = spec["replicatedJobs"][0]["template"]["spec"]
        if "template" in spec:
            yield item, spec["template"]


def test_objects_are_valid(made):
    for item in made:
        if item["kind"] in BUILT_IN:
            kubernetes_validate.validate(item, "1.34", strict=True)


def test_pods_are_restricted(made):
    found = list(templates(made))
    assert len(found) >= 10
    for _, template in found:
        pod, container = template["spec"], template["spec"]["containers"][0]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert {kind for volume in pod["volumes"] for kind in volume if kind != "name"} <= {
            "persistentVolumeClaim",
            "emptyDir",
            "configMap",
        }


def test_the_real_command_line_takes_the_arguments_of_every_pod(made):
    """Operator and package meet here: a renamed option breaks this test, not a pipeline."""
    checked = set()
    for _, template in templates(made):
        container = template["spec"]["containers"][0]
        assert container["command"] == ["steerlm"]
        args = [arg.replace("$(JOB_COMPLETION_INDEX)", "0") for arg in container["args"]]
        command = typer.main.get_command(application(args)).commands[args[0]]
        parsed = command.make_context(args[0], args[1:]).params
        checked.add(args[0])
        if args[0] == "stage":
            assert str(parsed["manifest"]) == settings.PATH
    assert checked == {"stage", "serve"}


def test_names_fit_and_are_unique(made):
    keys = [(item["kind"], item["metadata"]["name"]) for item in made]
    assert len(set(keys)) == len(keys)
    assert all(len(name) <= 63 for _, name in keys)
    assert all(item["metadata"]["namespace"] == "team" for item in made)


def test_everything_but_a_retained_claim_is_owned(made, pipeline):
    for item in made:
        assert ("ownerReferences" in item["metadata"]) == (item["kind"] != "PersistentVolumeClaim")
    owned = objects(pipeline(storage={"claimTemplate": {"size": "1Gi", "retain": False}}))[0]
    assert owned["metadata"]["ownerReferences"][0]["uid"] == "11111111-2222-3333-4444-555555555555"


def test_objects_are_those_that_were_pinned_by_another_process():
    """By ``python -m tests.operator.golden``, so that a set's order would be noticed too."""
    assert golden.rendered() == golden.FILE.read_text(encoding="utf-8")


def test_a_long_name_still_fits_host_names(resource, pipeline):
    for stage, count in (("bootstrap-32-train", 1024), ("annotate", 4096), ("bootstrap-32-sample", 1)):
        for jobset in (False, True):
            name = names.attempt("a" * 40, stage, 100, pods=count, jobset=jobset)
            host = f"{name}-node-0-{count - 1}" if jobset else f"{name}-{count - 1}"
            assert len(host) <= 63
    assert names.attempt("a" * 40, "annotate", 1, pods=4096) != names.attempt("a" * 39 + "b", "annotate", 1, pods=4096)


def by_name(made, name):
    return next(item for item in made if item["metadata"]["name"] == name and item["kind"] in ("Job", "Deployment"))


def test_training_on_two_nodes(pipeline):
    made = objects(pipeline())
    job = by_name(made, "demo-train-value-1")["spec"]
    assert (job["completionMode"], job["completions"], job["parallelism"], job["backoffLimit"]) == ("Indexed", 2, 2, 0)
    service = next(item for item in made if item["kind"] == "Service" and item["metadata"]["name"] == "demo-train-value-1")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    pod = job["template"]["spec"]
    assert pod["subdomain"] == "demo-train-value-1"
    env = {entry["name"]: entry.get("value") or entry["valueFrom"] for entry in pod["containers"][0]["env"]}
    assert env["PET_NNODES"] == "2"
    assert env["PET_NPROC_PER_NODE"] == "4"
    assert env["PET_MASTER_ADDR"] == "demo-train-value-1-0.demo-train-value-1.team.svc"
    assert names.COMPLETION_INDEX in env["PET_NODE_RANK"]["fieldRef"]["fieldPath"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "4"


def test_disruptions_come_before_exit_codes_and_permanent_codes_end_a_shard(pipeline):
    made = objects(pipeline())
    rules = by_name(made, "demo-annotate-1")["spec"]["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["Ignore", "Ignore", "FailIndex"]
    assert rules[0]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert rules[1]["onExitCodes"]["values"] == [143]
    assert rules[2]["onExitCodes"]["values"] == [2, 65, 78]
    shards = by_name(made, "demo-annotate-1")["spec"]
    assert (shards["completions"], shards["backoffLimitPerIndex"], shards["maxFailedIndexes"]) == (3, 3, 0)
    assert shards["template"]["spec"]["containers"][0]["args"][-2:] == ["--shard", "$(JOB_COMPLETION_INDEX)/3"]
    assert by_name(made, "demo-annotate-merge-1")["spec"]["template"]["spec"]["containers"][0]["args"][-1] == "--merge"


def test_nothing_of_a_user_is_expanded(pipeline):
    """``$(HF_TOKEN)`` in a value must reach the process as text, not as the token."""
    config = OperatorConfig(environment={"NCCL_DEBUG": "$(HF_TOKEN) $$(HF_TOKEN)"})
    made = objects(pipeline(config))
    for _, template in templates(made):
        env = {entry["name"]: entry.get("value", "") for entry in template["spec"]["containers"][0]["env"]}
        assert expanded(env["NCCL_DEBUG"]) == "$(HF_TOKEN) $$(HF_TOKEN)"


@given(st.text("$()AB ", max_size=12))
def test_escaped_text_comes_out_as_it_went_in(text):
    assert expanded(pods.literal(text)) == text


def expanded(text):
    """Kubernetes' own rule (third_party/forked/golang/expansion), with every variable known."""
    found, position = "", 0
    while position < len(text):
        if text[position] == "$" and position + 1 < len(text):
            following = text[position + 1]
            if following == "$":
                found, position = f"{found}$", position + 2
                continue
            end = text.find(")", position)
            if following == "(" and end >= 0:
                found, position = f"{found}SECRET", end + 1
                continue
        found, position = found + text[position], position + 1
    return found


def test_secrets_go_only_where_they_are_needed(pipeline):
    made = objects(pipeline(secrets={"wandb": {"name": "w", "key": "k"}, "huggingFace": {"name": "h", "key": "k"}}))
    seen = {}
    for item, template in templates(made):
        env = template["spec"]["containers"][0]["env"]
        seen[item["metadata"]["name"]] = {entry["name"] for entry in env if "secretKeyRef" in entry.get("valueFrom", {})}
    assert seen["demo-prepare-1"] == {"HF_TOKEN"}
    assert seen["demo-train-steer-1"] == {"HF_TOKEN", "WANDB_API_KEY"}
    assert seen["demo-serve"] == {"STEERLM_API_KEY"}
    assert {name for name, secrets in seen.items() if secrets} == {
        "demo-prepare-1", "demo-train-value-1", "demo-train-steer-1", "demo-bootstrap-1-train-1", "demo-serve",
    }  # fmt: skip


def serving(made):
    """By name, each server's arguments and the Secret that its token comes from."""
    found = {}
    for item, template in templates(made):
        container = template["spec"]["containers"][0]
        if container["args"][0] == "serve":
            secrets = [entry["valueFrom"]["secretKeyRef"] for entry in container["env"] if entry["name"] == "STEERLM_API_KEY"]
            found[item["metadata"]["name"]] = (set(container["args"]), [(secret["name"], secret["key"]) for secret in secrets])
    return found


def test_the_served_model_has_its_token_by_reference_and_no_page_unless_asked_for(pipeline):
    arguments, secrets = serving(objects(pipeline()))["demo-serve"]
    assert secrets == [("t", "served")]
    assert "--no-page" in arguments
    assert "--insecure" not in arguments
    arguments, secrets = serving(objects(pipeline(serve={"enabled": True, "insecure": True, "page": True})))["demo-serve"]
    assert arguments >= {"--page", "--insecure"}
    assert not secrets


def test_a_stages_servers_and_who_asks_them_share_a_token_where_one_is_named(pipeline):
    for arguments, secrets in (found for name, found in serving(objects(pipeline())).items() if name != "demo-serve"):
        assert arguments >= {"--no-page", "--insecure"}
        assert not secrets
    made = objects(pipeline(secrets={"servers": {"name": "s", "key": "stages"}}))
    stage_servers = {name: found for name, found in serving(made).items() if name != "demo-serve"}
    assert len(stage_servers) >= 4
    for arguments, secrets in stage_servers.values():
        assert "--insecure" not in arguments
        assert secrets == [("s", "stages")]
    asking = {
        item["metadata"]["name"]
        for item, template in templates(made)
        if item["kind"] == "Job" and any(entry["name"] == "STEERLM_API_KEY" for entry in template["spec"]["containers"][0]["env"])
    }
    assert asking == {"demo-annotate-1", "demo-bootstrap-1-sample-1", "demo-evaluate-1"}


def test_where_it_runs_changes_no_manifest(pipeline):
    """Suspending, scaling and scheduling must not make a new ConfigMap."""
    plain = settings.name(pipeline())
    assert settings.name(pipeline(suspend=True, scheduling={"queueName": "q"}, images={"worker": "other"})) == plain
    assert settings.name(pipeline(annotate={"shards": 3, "servers": {"replicas": 7}})) == plain
    assert settings.name(pipeline(serve={"enabled": True, "insecure": True})) == settings.name(pipeline(serve={"enabled": False})) == plain
    assert settings.name(pipeline(annotate={"shards": 4, "servers": {"replicas": 2}})) != plain
    assert "suspend" not in json.loads(settings.text(pipeline(suspend=True)))["spec"]


def test_the_stages_read_the_manifest_they_are_given(pipeline):
    from nemo_steerlm.pipeline import manifest

    read = manifest.parse(json.loads(settings.text(pipeline())), "the ConfigMap")
    assert read.spec.train_value == pipeline().manifest.spec.train_value


def test_servers_are_reached_by_their_own_pipeline_only(pipeline):
    policies = {p["metadata"]["labels"][names.COMPONENT]: p["spec"] for p in objects(pipeline()) if p["kind"] == "NetworkPolicy"}
    assert policies["server"]["ingress"][0]["from"] == [{"podSelector": {"matchLabels": {names.PIPELINE: "demo"}}}]
    assert {port["port"] for rule in policies["server"]["egress"] for port in rule["ports"]} == {53, 5353}
    off = OperatorConfig.model_validate({"security": {"networkPolicies": False}})
    assert not [item for item in objects(pipeline(off)) if item["kind"] == "NetworkPolicy"]


def test_own_fields_win_over_the_operators(pipeline):
    config = OperatorConfig.model_validate(
        {"images": {"worker": "op:1", "train": "op-train:1"}, "scheduling": {"priorityClassName": "low", "deviceResource": "none"}}
    )
    found = pipeline(config, scheduling={"nodeSelector": {"a": "b"}})
    assert (found.images.worker, found.images.train, found.images.serve) == ("op:1", "op-train:1", "op:1")
    assert (found.scheduling.priority_class_name, found.scheduling.node_selector) == ("low", {"a": "b"})
    assert pipeline(config, images={"worker": "mine:1"}).images.train == "mine:1"
    limits = by_name(objects(found), "demo-train-value-1")["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert set(limits) == {"memory"}


def test_jobset_names_its_pods_as_the_rendezvous_expects(pipeline):
    made = objects(pipeline(engine="JobSet"))
    jobset = next(item for item in made if item["kind"] == "JobSet")
    env = {
        e["name"]: e.get("value")
        for e in jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    own = jobset["metadata"]["name"]
    assert env["PET_MASTER_ADDR"] == f"{own}-node-0-0.{own}.team.svc"
    found = pipeline(engine="JobSet")
    assert work.job_name(found, found.graph[1], 1) == f"{own}-node-0"


def test_servers_end_before_they_are_killed(pipeline):
    servers = [template["spec"] for item, template in templates(objects(pipeline())) if item["kind"] == "Deployment"]
    assert servers
    for server in servers:
        arguments = server["containers"][0]["args"]
        drain = float(arguments[arguments.index("--drain-seconds") + 1])
        assert drain + 5 <= server["terminationGracePeriodSeconds"]


def container_of(made, name):
    template = by_name(made, name)["spec"]["template"]["spec"]
    return template["containers"][0], {volume["name"]: volume for volume in template["volumes"]}


def test_servers_have_as_many_replicas_and_gpus_as_asked_and_as_long_to_start(pipeline):
    servers = {"replicas": 2, "devices": 3, "startupTimeoutSeconds": 600}
    made = objects(pipeline(annotate={"servers": servers}, serve={"enabled": True, "insecure": True, "devices": 5, "replicas": 4}))
    for name, replicas, devices, starting in (
        ("demo-annotate-value-1", 2, "3", 600),
        ("demo-evaluate-steer-1", 2, "3", 600),
        ("demo-serve", 4, "5", 1800),
    ):
        container, _ = container_of(made, name)
        assert by_name(made, name)["spec"]["replicas"] == replicas
        assert container["resources"]["limits"]["nvidia.com/gpu"] == devices
        probes = {kind: container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")}
        assert {kind: probe["httpGet"]["path"] for kind, probe in probes.items()} == {
            "startup": "/health/ready", "readiness": "/health/ready", "liveness": "/health/live",
        }  # fmt: skip
        assert probes["startup"]["periodSeconds"] * probes["startup"]["failureThreshold"] == starting
        assert probes["readiness"]["periodSeconds"] * probes["readiness"]["failureThreshold"] == 10
        assert probes["liveness"]["periodSeconds"] * probes["liveness"]["failureThreshold"] == 30


def test_the_claim_is_written_by_stages_only_and_shared_memory_is_as_large_as_asked(pipeline):
    made = objects(pipeline(resources={"train": {"sharedMemory": "1Gi"}, "servers": {"memory": "2Gi"}}))
    for name, read_only, shared in (
        ("demo-train-steer-1", False, {"medium": "Memory", "sizeLimit": "1Gi"}),
        ("demo-serve", True, {"medium": "Memory"}),
    ):
        container, volumes = container_of(made, name)
        [claim] = [mount for mount in container["volumeMounts"] if mount["name"] == "data"]
        assert claim["readOnly"] is read_only
        assert volumes["shm"]["emptyDir"] == shared
    container, _ = container_of(made, "demo-serve")
    assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"] == "2Gi"
