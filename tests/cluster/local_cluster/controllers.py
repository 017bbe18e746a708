"""Controllers that a cluster may have beside its own: built from their Go modules, cached, and run inside of a cluster."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from local_cluster import binaries, certificates
from local_cluster.certificates import Identity
from local_cluster.cluster import LocalCluster
from local_cluster.errors import ClusterError, UnavailableError

SOURCES = Path(__file__).resolve().parent.parent / "controllers"
READY_SECONDS = 300

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Controller:
    """A program of a Go module: ``controllers/NAME`` pins the versions of everything that it is built from."""

    name: str
    module: str
    package: str
    port: int
    """Of its webhooks; health and metrics follow."""

    @property
    def health(self) -> str:
        return f"127.0.0.1:{self.port + 1}"

    @property
    def metrics(self) -> str:
        return f"127.0.0.1:{self.port + 2}"


JOBSET = Controller("jobset", "sigs.k8s.io/jobset", "sigs.k8s.io/jobset", 9443)
KUEUE = Controller("kueue", "sigs.k8s.io/kueue", "sigs.k8s.io/kueue/cmd/kueue", 9453)


def build(wanted: Controller, report: Callable[[str], None] = lambda _: None) -> Path:
    """A folder with the program and its module's ``config/``, built now if the cache lacks it.

    Raises:
        UnavailableError: There is no Go, or the module cannot be had.
    """
    folder = SOURCES / wanted.name
    key = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.iterdir()))).hexdigest()[:16]
    root = binaries.cache_root().parent / "controllers" / f"{wanted.name}-{key}"
    if (root / wanted.name).exists():
        return root
    go = shutil.which("go")
    if go is None:
        raise UnavailableError(f"no program go: {wanted.name} is built from its Go module")
    report(f"building {wanted.name}, once: some minutes on two cores")
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false -trimpath", "GOWORK": "off"}

    def run(*arguments: str) -> str:
        done = subprocess.run(["nice", go, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnavailableError(f"go {' '.join(arguments)} ended with {done.returncode}: {done.stderr[-1000:]}")
        return done.stdout

    run("mod", "download", wanted.module)
    source = Path(json.loads(run("mod", "download", "-json", wanted.module))["Dir"])
    root.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source / "config", root / "config", dirs_exist_ok=True, copy_function=shutil.copyfile)
    fresh = root / f"{wanted.name}.tmp"
    run("build", "-ldflags", "-s -w", "-o", str(fresh), wanted.package)
    fresh.rename(root / wanted.name)
    return root


def _settings(folder: Path, controller: Controller, version: str) -> dict[str, Any]:
    """What every controller of Kubernetes' own framework is configured with: one replica, and our certificates on this machine's ports."""
    return {
        "apiVersion": version,
        "kind": "Configuration",
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
        "webhook": {"port": controller.port, "host": "127.0.0.1", "certDir": str(folder)},
        "health": {"healthProbeBindAddress": controller.health},
        "metrics": {"bindAddress": controller.metrics},
    }


def start_jobset(cluster: LocalCluster, root: Path) -> None:
    """JobSet's definition, webhooks and controller in a cluster, until the cluster ends."""
    settings = _settings(_folder(cluster, JOBSET), JOBSET, "config.jobset.x-k8s.io/v1alpha1")
    _define(cluster, root / "config/components/crd/bases")
    _start(cluster, JOBSET, root, settings)
    label = {"key": "jobset.sigs.k8s.io/jobset-name", "operator": "Exists"}
    # For pods: those of JobSets alone, as its chart has it.
    _webhooks(cluster, JOBSET, root, {"pod": {"objectSelector": {"matchExpressions": [label]}}})


def start_kueue(cluster: LocalCluster, root: Path) -> None:
    """Kueue's definitions, webhooks and controller in a cluster, until the cluster ends: with JobSet's definition, or without."""
    folder = _folder(cluster, KUEUE)
    has_jobsets = cluster.kubectl("get", "crd/jobsets.jobset.x-k8s.io", check=False).returncode == 0
    settings = {
        **_settings(folder, KUEUE, "config.kueue.x-k8s.io/v1beta2"),
        "featureGates": {"VisibilityOnDemand": False},
        "integrations": {"frameworks": ["batch/job", "pod", "deployment", *(["jobset.x-k8s.io/jobset"] if has_jobsets else [])]},
    }
    _define(cluster, root / "config/components/crd/bases")
    # It looks for a certificate of its metrics in a fixed folder of /etc, which this machine does not have.
    above = [cluster.state / "kueue-etc" / name for name in ("upper", "work")]
    for path in above:
        path.mkdir(parents=True)
    certificate = above[0] / "kueue/metrics/certs"
    certificate.mkdir(parents=True)
    for suffix in ("crt", "key"):
        shutil.copy(folder / f"tls.{suffix}", certificate)
    overlay = f"mount -t overlay -o lowerdir=/etc,upperdir={above[0]},workdir={above[1]} overlay /etc"
    _start(cluster, KUEUE, root, settings, "unshare", "-m", "sh", "-ec", f'{overlay}; exec "$@"', "sh")
    elsewhere = {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system"]}]}
    _webhooks(cluster, KUEUE, root, {kind: {"namespaceSelector": elsewhere} for kind in ("pod", "deployment", "statefulset")})


def _folder(cluster: LocalCluster, controller: Controller) -> Path:
    """Its folder in the cluster's, with a certificate for its webhooks."""
    folder = cluster.state / controller.name
    folder.mkdir()
    certificates.issue_one(cluster.layout.path("pki"), Identity(controller.name, controller.name, addresses=("IP:127.0.0.1",)))
    for suffix in ("crt", "key"):
        shutil.copy(cluster.layout.certificate(f"{controller.name}.{suffix}"), folder / f"tls.{suffix}")
    return folder


def _define(cluster: LocalCluster, folder: Path) -> None:
    for path in sorted(folder.glob("*.yaml")):
        cluster.kubectl("apply", "--server-side", "-f", str(path))
        cluster.wait_condition("crd", yaml.safe_load(path.read_text())["metadata"]["name"], "Established")


def _start(cluster: LocalCluster, controller: Controller, root: Path, settings: Manifest, *around: str) -> None:
    process = _run(cluster, controller, root, settings, around=around)
    _await(cluster, controller, process, f"http://{controller.health}/readyz")


def _run(
    cluster: LocalCluster, controller: Controller, root: Path, settings: Manifest, *arguments: str, around: tuple[str, ...] = ()
) -> subprocess.Popen[bytes]:
    folder = cluster.state / controller.name
    shutil.copy(root / controller.name, folder)  # the cache may lie where the cluster sees something else
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    argv = [*around, str(folder / controller.name), "--config", str(folder / "settings.yaml"), *arguments]
    return cluster.run_inside(argv, controller.name)


def _await(cluster: LocalCluster, controller: Controller, process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    ready = ["curl", "-sf", "-o", "/dev/null", "--retry", "10", "--retry-connrefused", "--retry-delay", "1", url]
    while cluster.shell(ready):
        if process.poll() is not None or time.monotonic() > deadline:
            log = cluster.layout.path("log", f"{controller.name}.log").read_text()
            raise ClusterError(f"{controller.name} is not ready: {log[-2000:]}")


def _webhooks(cluster: LocalCluster, controller: Controller, root: Path, narrowed: dict[str, Manifest]) -> None:
    """Its own webhooks, asked at an address of the machine instead of a Service; ``narrowed`` has more fields for a kind of object."""
    authority = certificates.encoded(Path(cluster.layout.certificate("ca.crt")).read_bytes())
    found = [item for item in yaml.safe_load_all((root / "config/components/webhook/manifests.yaml").read_text()) if item]
    for item in found:
        item["metadata"]["name"] = f"{controller.name}-{item['metadata']['name']}"
        for webhook in item["webhooks"]:
            path = webhook["clientConfig"].pop("service")["path"]
            webhook["clientConfig"] = {"url": f"https://127.0.0.1:{controller.port}{path}", "caBundle": authority}
            webhook.update(narrowed.get(path.rpartition("-")[2], {}))
    cluster.apply(*found)
