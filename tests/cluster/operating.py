"""The operator as a process, with the identity and the rights that the chart gives it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml
from local_cluster.client import Cluster
from local_cluster.images import image

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts/steerlm-operator"
DEFINITION = ROOT / "k8s/crd/steerlmpipelines.yaml"
HOME = "steerlm-system"
"""Namespace of the operator's service account."""
RELEASE = "steerlm"
EVERY_ENGINE = "rbac.jobSet=true,rbac.volcano=true,rbac.coscheduling=true"
CONFIG = {
    "images": {"worker": "worker:test"},
    "storage": {"claimTemplate": {"size": "1Gi", "accessMode": "ReadWriteOnce"}},
    # On a cluster that has nodes, none of them: the stand-in plays them.
    "scheduling": {"deviceResource": "none", "nodeSelector": {"steerlm.dev/node": "stand-in"}},
    "address": "127.0.0.1:0",
    "retrySeconds": 0.5,
    "progressSeconds": 1,
    "resyncSeconds": 5,
}


THREADS = {"OMP_NUM_THREADS": "1"}
"""The same number on a cluster as on one machine: sums depend on it in their last digits."""
VALUES = {
    "config": {
        "storage": {"claimTemplate": {"size": "1Gi"}},
        "resources": {
            "prepare": {"cpu": "100m", "memory": "2Gi"},
            "train": {"cpu": "100m", "memory": "4Gi", "sharedMemory": "64Mi"},
            "annotate": {"cpu": "50m", "memory": "1Gi"},
            "evaluate": {"cpu": "50m", "memory": "2Gi"},
            "servers": {"cpu": "100m", "memory": "3Gi"},
        },
        "scheduling": {"deviceResource": "none"},
        "environment": THREADS,
        "retrySeconds": 1,
        "progressSeconds": 2,
    }
}
"""The chart's values for a node of two cores without accelerators."""


def restricted(name: str) -> dict[str, Any]:
    """A namespace that enforces Pod Security *restricted*."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def helm_install(helm: Any, cluster: Cluster) -> None:
    """The chart's operator in ``HOME``, ready."""
    # Where one cluster is all there is, other tests have applied the definition, the account and its rights before.
    flags = ("--namespace", HOME, "--values", "-", "--wait", "--timeout", "300s", "--take-ownership", "--force-conflicts")
    repository, _, tag = image("operator").rpartition(":")
    images = {"image": {"repository": repository, "tag": tag}, "config": {**VALUES["config"], "images": {"worker": image("worker")}}}
    helm("upgrade", "--install", RELEASE, str(CHART), *flags, "--set", EVERY_ENGINE, cluster=cluster, stdin=yaml.safe_dump(VALUES | images))


def granted(helm: Any) -> list[dict[str, Any]]:
    """The chart's service account, role and binding, with every engine's rights."""
    show = [flag for name in ("serviceaccount", "rbac") for flag in ("--show-only", f"templates/{name}.yaml")]
    text = helm("template", "steerlm-operator", str(CHART), "-n", HOME, "--set", EVERY_ENGINE, *show).stdout
    return [item for item in yaml.safe_load_all(text) if item]


def role(objects: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rules of the one role among the chart's objects."""
    (found,) = [item for item in objects if item["kind"] in ("Role", "ClusterRole")]
    rules: list[dict[str, Any]] = found["rules"]
    return rules


def account(objects: Sequence[dict[str, Any]]) -> str:
    """The name of the chart's service account."""
    (found,) = [item for item in objects if item["kind"] == "ServiceAccount"]
    return str(found["metadata"]["name"])


def define(cluster: Cluster) -> None:
    """Apply the committed definition, and wait until it is served."""
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(DEFINITION))
    await_definition(cluster)


def await_definition(cluster: Cluster) -> None:
    """Until the API server takes pipelines, lists them among its resources and has published their schema, in whatever order."""
    cluster.wait_condition("crd", "steerlmpipelines.steerlm.dev", "Established")
    schema = ("get", "--raw", "/openapi/v3/apis/steerlm.dev/v1alpha1")
    while (
        cluster.kubectl(*schema, check=False).returncode or "slp" not in cluster.kubectl("api-resources", "--api-group=steerlm.dev").stdout
    ):
        pass  # nothing to watch; the test's own time limit ends this. api-resources renews what kubectl remembers of the server


def install(cluster: Cluster, objects: Sequence[dict[str, Any]], folder: Path) -> Path:
    """Make the service account with its rights; returns a kubeconfig of it. The definition is applied too."""
    define(cluster)
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": HOME}})
    cluster.apply(*objects, namespace=HOME)
    user = f"system:serviceaccount:{HOME}:{account(objects)}"
    while cluster.kubectl("auth", "can-i", "list", "jobs", "--all-namespaces", "--as", user, check=False).returncode:
        pass  # the API server learns of a new role a moment later; the test's own time limit ends this
    return cluster.service_account_kubeconfig(account(objects), HOME, folder).kubeconfig


class Operator:
    """One operator, which may live several times. Its log is JSON, as the chart sets it."""

    def __init__(self, kubeconfig: Path, folder: Path, **config: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "operator.yaml"
        path.write_text(yaml.safe_dump(CONFIG | config))
        self.environment = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "STEERLM_OPERATOR_CONFIG": str(path),
            "STEERLM_LOG_FORMAT": "json",
        }
        self.log = folder / "operator.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin a life."""
        with self._lock, self.log.open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "steerlm_operator"], env=self.environment, stdout=log, stderr=log)

    def kill(self) -> None:
        """kill -9."""
        assert self.process
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM; it has to end well."""
        assert self.process
        self.process.terminate()
        assert self.process.wait(30) == 0, self.log.read_text()[-3000:]

    def lines(self) -> list[dict[str, Any]]:
        """Its log, parsed: every line has to be JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def page(self, path: str) -> httpx.Response:
        """One of its pages, of its present life."""
        said = re.findall(r"health and metrics on \('127.0.0.1', (\d+)\)", self.log.read_text())
        return httpx.get(f"http://127.0.0.1:{said[-1]}{path}", timeout=60)

    def until_page(self, path: str, status: int, seconds: float = 60) -> str:
        """The text of a page once it has this status."""

        def look() -> tuple[bool, str]:
            found = self.page(path)
            return found.status_code == status, found.text

        return self._until(look, seconds)

    def until_metric(self, value: float, name: str, seconds: float = 60, **labels: str) -> None:
        """Wait until a metric has this value."""
        self._until(lambda: (self.metric(name, **labels) == value, ""), seconds)

    def _until(self, look: Callable[[], tuple[bool, str]], seconds: float) -> str:
        """Its pages cannot be watched: they are asked again and again."""
        end, pause, said = time.monotonic() + seconds, threading.Event(), ""
        while time.monotonic() < end:
            with contextlib.suppress(httpx.HTTPError, IndexError):  # it has not started yet
                holds, said = look()
                if holds:
                    return said
            pause.wait(0.1)
        raise AssertionError(f"never came; last: {said}\n{self.log.read_text()[-2000:]}")

    def metric(self, name: str, **labels: str) -> float:
        """A metric's value, 0 where it is absent."""
        for line in self.page("/metrics").text.splitlines():
            if re.match(rf"{name}(\{{|\s)", line) and all(f'{key}="{value}"' in line for key, value in labels.items()):
                return float(line.rpartition(" ")[2])
        return 0.0
