"""What pipelines may say of their pods: it arrives, the rest stays the operator's, and what is not allowed is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from steerlm_operator import models
from steerlm_operator.config import OperatorConfig
from steerlm_operator.reconcile import objects
from steerlm_operator.render import render

from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.pipeline.pod_spec import EVERYBODY_MAY, PodSpec
from tests.operator.test_resources import BUILT_IN, by_name, templates

SAMPLES = Path(__file__).parents[2] / "k8s/samples"
ALL = {"podFields": [str(field.alias) for field in PodSpec.model_fields.values()]}
SETTINGS = {
    "infiniband": {"podFields": [*EVERYBODY_MAY, "capabilities"]},
    "openshift": {"security": {"runAsUser": None, "fsGroup": None}},
}
"""What the comments of the samples ask of the operator."""


def rendered(sample, tmp_path):
    file = tmp_path / "operator.yaml"
    file.write_text(yaml.safe_dump(SETTINGS.get(sample, {})))
    return render(SAMPLES / f"{sample}.yaml", "team", file)


@pytest.mark.parametrize("sample", sorted(path.stem for path in SAMPLES.glob("*.yaml")))
def test_samples_make_valid_objects(sample, tmp_path):
    made = rendered(sample, tmp_path)
    for item in made:
        if item["kind"] in BUILT_IN:
            kubernetes_validate.validate(item, "1.34", strict=True)
    for _, template in templates(made):
        pod, container = template["spec"], template["spec"]["containers"][0]
        assert not pod.get("hostNetwork")
        assert pod["automountServiceAccountToken"] is False
        assert len({entry["name"] for entry in container["env"]}) == len(container["env"])
        if sample != "infiniband":
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_samples_say_what_they_are_for(tmp_path):
    def training(sample):
        made = rendered(sample, tmp_path)
        return next(t for i, t in templates(made) if i["kind"] == "Job" and "train-value" in i["metadata"]["name"])

    efa = training("efa")["spec"]["containers"][0]
    assert efa["resources"]["limits"] | {"vpc.amazonaws.com/efa": "32", "nvidia.com/gpu": "8"} == efa["resources"]["limits"]
    networks = json.loads(training("gke-multi-network")["metadata"]["annotations"]["networking.gke.io/interfaces"])
    assert len(networks) == 9
    infiniband = training("infiniband")
    assert infiniband["spec"]["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert infiniband["metadata"]["annotations"]["scheduling.k8s.io/group-name"]
    assert {"name": "models", "mountPath": "/models", "readOnly": True} in infiniband["spec"]["containers"][0]["volumeMounts"]
    assert training("spot")["spec"]["terminationGracePeriodSeconds"] == 30
    inside = training("air-gapped")["spec"]
    assert {"name": "user-private-ca", "configMap": {"name": "private-ca"}} in inside["volumes"]
    assert "runAsUser" not in training("openshift")["spec"]["securityContext"]
    assert "fsGroup" not in training("openshift")["spec"]["securityContext"]
    servers = next(i for i in rendered("openshift", tmp_path) if i["kind"] == "NetworkPolicy" and "serve-" in i["metadata"]["name"])
    assert {port["port"] for rule in servers["spec"]["egress"] for port in rule["ports"]} == {53, 5353}
    assert len(servers["spec"]["ingress"][0]["from"]) == 2


def test_each_role_has_its_own(pipeline):
    made = objects(pipeline(pods={role: {"labels": {"role": role}} for role in ("train", "serve", "annotate", "client")}))
    roles = {item["metadata"]["name"]: template["metadata"]["labels"]["role"] for item, template in templates(made)}
    assert roles["demo-train-value-1"] == roles["demo-bootstrap-1-train-1"] == "train"
    assert roles["demo-annotate-1-value" if "demo-annotate-1-value" in roles else "demo-serve"] == "serve"
    assert roles["demo-annotate-1"] == roles["demo-annotate-merge-1"] == "annotate"
    assert roles["demo-prepare-1"] == roles["demo-evaluate-1"] == roles["demo-bootstrap-1-sample-1"] == "client"


def test_everything_that_may_be_said_arrives(pipeline):
    patch = {
        "env": {"A": "$(HF_TOKEN)", "HOME": "/elsewhere"},
        "envFrom": [{"secret": "s"}, {"configMap": "c"}],
        "resources": {"nvidia.com/mig-3g.40gb": "1"},
        "ephemeralStorage": "10Gi",
        "guaranteed": True,
        "volumes": [
            {"name": "a", "mountPath": "/a", "claimName": "a", "writable": True},
            {"name": "b", "mountPath": "/b/c", "secret": "b", "subPath": "key"},
            {"name": "c", "mountPath": "/c", "emptyDir": "1Gi"},
        ],
        "labels": {"team": "x"},
        "annotations": {"example.com/a": "b"},
        "nodeSelector": {"pool": "gpu"},
        "nodeLabels": [{"key": "zone", "operator": "NotIn", "values": ["z"]}, {"key": "gpu", "operator": "Exists"}],
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "spread": [{"topologyKey": "zone", "maxSkew": 2}],
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
        "imagePullSecrets": ["mine", "shared"],
        "dns": {"nameservers": ["10.0.0.10"], "searches": ["example.com"]},
        "serviceAccountName": "reader",
        "hostNetwork": True,
        "capabilities": ["IPC_LOCK"],
    }
    assert set(patch) == set(ALL["podFields"])
    scheduling = {"topologyKey": "rack", "nodeSelector": {"a": "b"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]}
    config = OperatorConfig.model_validate(ALL)
    found = pipeline(config, pods={"train": patch}, scheduling=scheduling, images={"pullSecrets": ["shared"]})
    job = by_name(objects(found), "demo-train-value-1")
    kubernetes_validate.validate(job, "1.34", strict=True)
    template = job["spec"]["template"]
    pod, container = template["spec"], template["spec"]["containers"][0]
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert (env["A"], env["HOME"]) == ("$$(HF_TOKEN)", "/tmp")
    assert container["envFrom"] == [{"secretRef": {"name": "s"}}, {"configMapRef": {"name": "c"}}]
    limits, requests = container["resources"]["limits"], container["resources"]["requests"]
    assert (limits["nvidia.com/mig-3g.40gb"], limits["ephemeral-storage"], limits["cpu"]) == ("1", "10Gi", requests["cpu"])
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert "readOnly" not in mounts["/a"]
    assert (mounts["/b/c"]["readOnly"], mounts["/b/c"]["subPath"]) == (True, "key")
    assert (pod["nodeSelector"], len(pod["tolerations"])) == ({"a": "b", "pool": "gpu"}, 2)
    assert set(pod["affinity"]) == {"nodeAffinity", "podAffinity"}
    assert pod["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"]["steerlm.dev/stage"] == "train-value"
    assert [secret["name"] for secret in pod["imagePullSecrets"]] == ["shared", "mine"]
    assert (pod["priorityClassName"], pod["runtimeClassName"], pod["serviceAccountName"]) == ("high", "nvidia", "reader")
    assert (pod["hostNetwork"], pod["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    assert pod["dnsConfig"] == {"nameservers": ["10.0.0.10"], "searches": ["example.com"]}
    assert pod["automountServiceAccountToken"] is False


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        ({"hostNetwork": True}, "spec.pods.train.hostNetwork: this operator lets no pipeline set it"),
        ({"serviceAccountName": "admin"}, "spec.pods.train.serviceAccountName: this operator"),
        ({"capabilities": ["IPC_LOCK"]}, "spec.pods.train.capabilities"),
        ({"runtimeClassName": "kata"}, "spec.pods.train.runtimeClassName"),
        ({"env": {"PET_NNODES": "9"}}, "spec.pods.train.env.PET_NNODES: the operator sets this itself"),
        ({"labels": {"steerlm.dev/pipeline": "other"}}, "steerlm.dev/pipeline is not yours to set"),
        ({"labels": {"kueue.x-k8s.io/queue-name": "mine"}}, "kueue.x-k8s.io/queue-name is not yours to set"),
    ],
)
def test_what_is_not_allowed_is_refused_by_name(resource, patch, words):
    with pytest.raises(UsageError, match=words):
        models.parse(resource(pods={"train": patch}), OperatorConfig())


def test_the_operator_s_own_may_set_everything_and_a_pipeline_adds_to_it(pipeline):
    config = OperatorConfig.model_validate({"pods": {"train": {"hostNetwork": True, "env": {"NCCL_DEBUG": "INFO", "A": "1"}}}})
    made = objects(pipeline(config, pods={"train": {"env": {"A": "2"}}}))
    pod = by_name(made, "demo-train-value-1")["spec"]["template"]["spec"]
    env = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
    assert (pod["hostNetwork"], env["NCCL_DEBUG"], env["A"]) == (True, "INFO", "2")


def test_the_served_model_s_servers_are_scaled_drained_and_fed_from_elsewhere(pipeline):
    def served(**serve):
        made = objects(pipeline(serve={"enabled": True, "insecure": True, **serve}))
        mine = [item for item in made if item["metadata"]["name"].startswith("demo-serve")]
        return {item["kind"]: item for item in mine}

    assert "PodDisruptionBudget" not in served()
    assert served(replicas=2)["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
    scaled = served(autoscaled=True)  # whose number an autoscaler changes all the time
    assert "replicas" not in scaled["Deployment"]["spec"]
    assert "PodDisruptionBudget" in scaled
    elsewhere = served(engine={"external": {"url": "https://vllm.example:8443", "token": {"name": "t", "key": "k"}}})
    container = elsewhere["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert container["args"][-6:-2] == ["--engine", "openai", "--upstream", "https://vllm.example:8443"]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert "STEERLM_UPSTREAM_KEY" in {entry["name"] for entry in container["env"]}
    assert {"ports": [{"port": 8443, "protocol": "TCP"}]} in elsewhere["NetworkPolicy"]["spec"]["egress"]
