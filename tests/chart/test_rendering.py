"""What helm makes of the chart: valid for every supported Kubernetes, restricted, and changed by values as they say."""

from __future__ import annotations

import itertools

import kubernetes_validate
import pytest
import yaml
from steerlm_operator.config import OperatorConfig

from charts.generate import CHART, files

VERSIONS = [version for version in kubernetes_validate.utils.all_versions() if tuple(map(int, version.split("."))) >= (1, 30, 0)]
PIPELINE = {"attributes": {"preset": "helpsteer"}, "data": {"helpsteer": {"path": "hf:nvidia/HelpSteer"}}, "model": {"base": "models/base"}}
SERVED = ("--api-versions", "steerlm.dev/v1alpha1/SteerLMPipeline")
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
    "priorityClassName": "system-cluster-critical",
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [TOLERATION],
    "affinity": AFFINITY,
    "metrics": {
        "service": {"annotations": {"a": "b"}},
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "podMonitor": {"enabled": True},
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
def test_the_operator_reads_its_configuration(render, values):
    text = named(render(MATRIX[values]), "ConfigMap")["data"]["config.yaml"]
    config = OperatorConfig.model_validate(yaml.safe_load(text))
    assert config.address == "0.0.0.0:8080"
    wanted = {"own namespace": ("team",), "two namespaces": ("blue", "green")}
    assert config.namespaces == wanted.get(values, ())
    if values == "everything":
        assert (config.storage.claim_name, config.storage.claim_template) == ("shared", None)
        assert (config.images.worker, config.run_policy.ttl_seconds_after_finished) == ("worker:1", 31_536_000)
    else:
        assert config == OperatorConfig(namespaces=config.namespaces)
