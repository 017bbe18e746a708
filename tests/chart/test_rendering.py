"""What helm makes of the chart: valid for every supported Kubernetes, restricted, and changed by values as they say."""

from __future__ import annotations

import itertools
import json
import re

import kubernetes_validate
import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase
from steerlm_operator import metrics
from steerlm_operator.config import OperatorConfig, load

from charts.generate import CHART, files
from nemo_steerlm import __version__
from nemo_steerlm.pipeline import crd, manifest

VERSIONS = [version for version in kubernetes_validate.utils.all_versions() if tuple(map(int, version.split("."))) >= (1, 30, 0)]
PIPELINE = {"attributes": {"preset": "helpsteer"}, "data": {"helpsteer": {"path": "hf:nvidia/HelpSteer"}}, "model": {"base": "models/base"}}
SERVED = ("--api-versions", "steerlm.dev/v1alpha1/SteerLMPipeline")
SERVER = ("--api-versions", "apiregistration.k8s.io/v1")
"""What every API server has, and helm without one has not."""
ROOT = CHART.parents[1]
TOLERATION = {"key": "control-plane", "operator": "Exists", "effect": "NoSchedule"}
AFFINITY = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "In", "values": ["system"]}]}]
        }
    }
}
EVERYTHING = {
    "commonLabels": {"team": "language", "app.kubernetes.io/name": "not-this"},
    "image": {"registry": "registry.example:5000", "repository": "ml/operator", "digest": f"sha256:{'a' * 64}", "pullPolicy": "Always"},
    "imagePullSecrets": ["registry"],
    "config": {
        "images": {"worker": "worker:1", "train": "train:1", "pullSecrets": ["registry"]},
        "storage": {"claimName": "shared"},
        "environment": {"NCCL_SOCKET_IFNAME": "eth0"},
        "runPolicy": {"ttlSecondsAfterFinished": 31_536_000},
    },
    "logFormat": "text",
    "serviceAccount": {"annotations": {"example.com/role": "operator"}},
    "rbac": {"jobSet": True, "volcano": True, "coscheduling": True},
    "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
    "environment": {"HTTPS_PROXY": "http://user:$(SECRET)@proxy:3128"},
    "podLabels": {"sidecar": "no-thanks"},
    "podAnnotations": {"example.com/scrape": "true"},
    "replicas": 2,
    "priorityClassName": "system-cluster-critical",
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [TOLERATION],
    "affinity": AFFINITY,
    "metrics": {
        "service": {"annotations": {"a": "b"}},
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "podMonitor": {"enabled": True},
        "rules": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboard": {"enabled": True, "annotations": {"folder": "SteerLM"}},
    },
    "networkPolicy": {"metricsNamespaces": ["monitoring"], "apiServerPorts": [6443]},
    "pipelines": {
        "one": {"spec": PIPELINE, "labels": {"a": "b"}, "annotations": {"a": "b"}},
        "two": {"namespace": "other", "spec": PIPELINE},
    },
}
NOTHING = {
    "crds": {"install": False},
    "serviceAccount": {"create": False, "name": "given"},
    "rbac": {"create": False, "aggregate": False},
    "user": {"runAsUser": None, "runAsGroup": None},
    "metrics": {"service": {"enabled": False}},
    "networkPolicy": {"enabled": False},
}
MATRIX = {
    "default": {},
    "everything": EVERYTHING,
    "nothing": NOTHING,
    "own namespace": {"scope": "namespaced"},
    "two namespaces": {"scope": "namespaced", "namespaces": ["blue", "green"], "fullnameOverride": "steerlm"},
}


def named(objects, kind, name=None):
    (found,) = [o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    return found


def operator_pod(objects):
    return named(objects, "Deployment")["spec"]["template"]


def test_lint_has_nothing_to_say(helm):
    for values in MATRIX.values():
        said = helm("lint", "--strict", str(CHART), "-f", "-", stdin=yaml.safe_dump(values)).stdout
        assert "0 chart(s) failed" in said
        assert not [line for line in said.splitlines() if line.startswith("[") and "icon is recommended" not in line]


def test_generated_files_are_up_to_date():
    for path, text in files().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: run make chart"


@pytest.mark.parametrize(
    ("values", "version"),
    [
        *(("everything", version) for version in VERSIONS),
        *itertools.product(sorted(MATRIX.keys() - {"everything"}), (VERSIONS[0], VERSIONS[-1])),
    ],
    ids=str,
)
def test_every_object_is_valid(render, values, version):
    objects = render(MATRIX[values], "--kube-version", version, *SERVED)
    for item in objects:
        assert item["metadata"]["name"]
        if item["apiVersion"] not in ("steerlm.dev/v1alpha1", "monitoring.coreos.com/v1"):
            kubernetes_validate.validate(item, version, strict=True)


@pytest.mark.parametrize("values", MATRIX, ids=str)
def test_rendering_twice_gives_the_same(render, values):
    assert render(MATRIX[values]) == render(MATRIX[values])


@pytest.mark.parametrize("values", MATRIX, ids=str)
def test_the_operator_reads_its_configuration(render, values, tmp_path):
    (text,) = [item["data"]["config.yaml"] for item in render(MATRIX[values]) if "config.yaml" in item.get("data", ())]
    (tmp_path / "config.yaml").write_text(text)
    config = load(str(tmp_path / "config.yaml"))
    assert config.address == "0.0.0.0:8080"
    wanted = {"own namespace": ("team",), "two namespaces": ("blue", "green")}
    assert config.namespaces == wanted.get(values, ())
    if values == "everything":
        assert (config.storage.claim_name, config.storage.claim_template) == ("shared", None)
        assert (config.images.worker, config.run_policy.ttl_seconds_after_finished) == ("worker:1", 31_536_000)
    else:
        assert config == OperatorConfig(namespaces=config.namespaces)


def test_labels_that_others_select_on_cannot_be_changed(render):
    objects = render(EVERYTHING, *SERVED)
    for item in objects:
        labels = item["metadata"]["labels"]
        assert (labels["team"], labels["app.kubernetes.io/name"]) == ("language", "steerlm-operator")
    pod = operator_pod(objects)["metadata"]
    assert pod["labels"]["sidecar"] == "no-thanks"
    assert pod["annotations"]["example.com/scrape"] == "true"
    for selector in (
        named(objects, "Deployment")["spec"]["selector"]["matchLabels"],
        named(objects, "Service")["spec"]["selector"],
        named(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        named(objects, "PodMonitor")["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= pod["labels"].items()
        assert not selector.items() <= named(objects, "Pod")["metadata"]["labels"].items(), "helm test's pod is taken for the operator"
    monitor = named(objects, "ServiceMonitor")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= named(objects, "Service")["metadata"]["labels"].items()
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


def test_one_operator_at_a_time_with_probes(render):
    spec = named(render(), "Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    (container,) = spec["template"]["spec"]["containers"]
    assert {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")} == {
        "startupProbe": "/readyz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }


def test_several_operators_elect_one(render):
    objects = render({"replicas": 2})
    spec = named(objects, "Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (2, {"type": "RollingUpdate"})
    lease = next(entry["value"] for entry in spec["template"]["spec"]["containers"][0]["env"] if entry["name"] == "STEERLM_OPERATOR_LEASE")
    assert lease == "team/test-steerlm-operator-leader"
    role = named(objects, "Role", "test-steerlm-operator-leader")
    assert [(rule["verbs"], rule.get("resourceNames")) for rule in role["rules"]] == [
        (["create"], None),
        (["get", "update"], ["test-steerlm-operator-leader"]),
    ]
    assert named(objects, "PodDisruptionBudget")["spec"]["minAvailable"] == 1
    assert not {"Role", "PodDisruptionBudget"} & {item["kind"] for item in render()}


def test_another_configuration_is_another_pod(render):
    pods = [operator_pod(render({"config": {"workers": workers}}))["metadata"]["annotations"]["checksum/config"] for workers in (8, 9)]
    assert pods[0] != pods[1]
    assert pods[0] == operator_pod(render())["metadata"]["annotations"]["checksum/config"]


def test_pod_settings_reach_operator_and_check(render):
    objects = render(EVERYTHING)
    for pod in (operator_pod(objects)["spec"], named(objects, "Pod")["spec"]):
        assert pod["containers"][0]["image"] == f"registry.example:5000/ml/operator@sha256:{'a' * 64}"
        assert pod["containers"][0]["imagePullPolicy"] == "Always"
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        assert (pod["priorityClassName"], pod["tolerations"], pod["affinity"]) == ("system-cluster-critical", [TOLERATION], AFFINITY)
    environment = {entry["name"]: entry["value"] for entry in operator_pod(objects)["spec"]["containers"][0]["env"]}
    assert environment["STEERLM_LOG_FORMAT"] == "text"
    assert environment["HTTPS_PROXY"] == "http://user:$$(SECRET)@proxy:3128", "Kubernetes would expand it"
    assert operator_pod(render())["spec"]["containers"][0]["image"].endswith(f"operator:{__version__}")


def test_the_definition_is_kept_and_can_be_left_out(render):
    definition = named(render(), "CustomResourceDefinition")
    assert definition["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert {**definition, "metadata": {"name": definition["metadata"]["name"]}} == crd.definition()
    assert "CustomResourceDefinition" not in {item["kind"] for item in render(NOTHING)}


def test_pipelines_come_once_their_kind_is_there(render):
    def pipelines(*flags):
        return [item for item in render(EVERYTHING, *flags) if item["kind"] == "SteerLMPipeline"]

    assert not pipelines(*SERVER)
    assert pipelines("--is-upgrade", *SERVER) == pipelines(*SERVER, *SERVED)
    assert pipelines() == pipelines(*SERVED), "helm template, as Argo CD runs it, has them"
    one, two = pipelines(*SERVED)
    assert (one["metadata"]["namespace"], two["metadata"]["namespace"]) == ("team", "other")
    manifest.parse(one, "the chart")


def test_the_dashboard_and_the_metrics_agree(render):
    board = json.loads(
        named(render({"metrics": {"dashboard": {"enabled": True}}}), "ConfigMap", "test-steerlm-operator-dashboard")["data"][
            "steerlm-operator.json"
        ]
    )
    text = " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
    named_there = {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"steerlm_\w+", text)}
    assert named_there == kept()


def kept():
    """Every metric that the operator has."""
    collectors = [each for each in vars(metrics).values() if isinstance(each, MetricWrapperBase)]
    return {family.name + ("_total" if family.type == "counter" else "") for each in collectors for family in each.describe()}


def test_alerts_are_about_metrics_that_there_are_and_have_a_page(render):
    (group,) = named(render({"metrics": {"rules": {"enabled": True}}}), "PrometheusRule")["spec"]["groups"]
    assert len(group["rules"]) >= 5
    for rule in group["rules"]:
        assert set(re.findall(r"steerlm_\w+", rule["expr"])) <= kept(), rule["alert"]
        assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= set(re.findall(r"\w+", rule["expr"]))
        page, _, heading = rule["annotations"]["runbook"].partition("#")
        headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert heading in [each.lower() for each in headings]


def test_notes_name_the_next_commands(helm):
    for values, sentences in (
        ({}, ["all namespaces", "helm -n team test test"]),
        ({"scope": "namespaced", "namespaces": ["blue"]}, ["pipelines of blue", "namespace: blue"]),
        ({"crds": {"install": False}}, ["kubectl apply --server-side"]),
    ):
        flags = ("install", "test", str(CHART), "-n", "team", "--dry-run=client", "-f", "-")
        notes = helm(*flags, stdin=yaml.safe_dump(values)).stdout.partition("NOTES:")[2]
        assert not [sentence for sentence in sentences if sentence not in notes], notes


def test_monitors_have_the_fields_of_their_kinds(render):
    """No schema of these kinds is at hand: their specs are compared whole."""
    objects = render(EVERYTHING)
    endpoint = {"port": "http", "path": "/metrics", "interval": "30s", "scrapeTimeout": "10s"}
    selector = {"matchLabels": named(objects, "Deployment")["spec"]["selector"]["matchLabels"]}
    assert named(objects, "ServiceMonitor")["spec"] == {"selector": selector, "endpoints": [endpoint]}
    assert named(objects, "PodMonitor")["spec"] == {"selector": selector, "podMetricsEndpoints": [endpoint]}
