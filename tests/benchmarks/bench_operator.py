"""Many pipelines at once on a real API server, with a stand-in for Jobs' pods: how soon all run, how late a status is, what it costs.

``python -m tests.benchmarks.bench_operator [PIPELINES]``; 1,000 by default. Skips, with the reason, where no cluster can be started.

etcd, API server, controllers, operator and this program share the machine. No node is there: a pod's status is set as a node would set it,
at once, and there is no output to read progress from. First all pipelines are applied, and their first stage starts. Then, with all of them
running, the pods of some Jobs end one after another, at a steady rate; each end is a stage that is done and the next one started. Last, the
operator is killed and started again. It runs without the Kubernetes client that the tests use, as in its image.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cluster"))

from local_cluster import binaries
from local_cluster.clients import Helm
from local_cluster.cluster import LocalCluster, unavailable

from tests.cluster import operating
from tests.cluster.pipelines import SPEC, Status
from tests.cluster.stand_in import DONE, RUNNING, status_of

NAMESPACE = "scale"
PATIENCE = 1500.0
ENDS = 300
ENDS_PER_SECOND = 5.0
POD = SimpleNamespace(
    metadata=SimpleNamespace(labels={"steerlm.dev/component": "work"}), spec=SimpleNamespace(containers=[SimpleNamespace(image="worker")])
)
PIPELINES = f"/apis/steerlm.dev/v1alpha1/namespaces/{NAMESPACE}/steerlmpipelines"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"


class Scale:
    """What an administrator's connection sees and does. Pods run as soon as they are seen; they end when told."""

    def __init__(self, session: aiohttp.ClientSession, at_once: int = 8) -> None:
        self.session = session
        self.limit = asyncio.Semaphore(at_once)
        self.pods: dict[str, str] = {}
        self.started: set[str] = set()
        self.running: set[str] = set()
        self.ended: dict[str, float] = {}
        self.told: dict[str, float] = {}
        self.patches: set[asyncio.Task[None]] = set()

    async def request(self, method: str, path: str, body: Any, content: str = "application/json") -> None:
        """One request, few at a time. Raises ClientResponseError."""
        async with self.limit:
            with contextlib.suppress(aiohttp.ServerDisconnectedError):  # a connection that had been idle
                return await self._send(method, path, body, content)
            return await self._send(method, path, body, content)

    async def _send(self, method: str, path: str, body: Any, content: str) -> None:
        async with self.session.request(method, path, json=body, headers={"Content-Type": content}) as answer:
            answer.raise_for_status()

    async def apply(self, name: str) -> None:
        """Make one pipeline."""
        body = {"apiVersion": "steerlm.dev/v1alpha1", "kind": "SteerLMPipeline", "metadata": {"name": name}, "spec": SPEC}
        await self.request("POST", PIPELINES, body)

    async def set_status(self, pod: str, does: dict[str, Any]) -> None:
        """What the kubelet would report."""
        await self.request("PATCH", f"{PODS}/{pod}/status", {"status": status_of(POD, does)}, "application/merge-patch+json")

    async def watch(self, path: str, selector: str, see: Callable[[dict[str, Any]], None]) -> None:
        """Every object at first and every change from then on; from the beginning again where the stream ends."""
        while True:
            with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError):
                query = {"watch": "true", "labelSelector": selector}
                async with self.session.get(path, params=query, timeout=aiohttp.ClientTimeout(total=None)) as stream:
                    async for line in stream.content:
                        event = json.loads(line)
                        if event["type"] in ("ADDED", "MODIFIED"):
                            see(event["object"])

    def see_pipeline(self, item: dict[str, Any]) -> None:
        """Its first stage runs, or is said to be done."""
        phase = Status(item).stages.get("prepare", {}).get("phase")
        if phase == "Running":
            self.running.add(item["metadata"]["name"])
        elif phase == "Succeeded":
            self.told.setdefault(item["metadata"]["name"], time.monotonic())

    def see_job(self, item: dict[str, Any]) -> None:
        """The first stage's Job has ended."""
        if any(c["type"] == "Complete" and c["status"] == "True" for c in item.get("status", {}).get("conditions") or ()):
            self.ended.setdefault(item["metadata"]["labels"]["steerlm.dev/pipeline"], time.monotonic())

    def see_pod(self, item: dict[str, Any]) -> None:
        """A pod that nobody has started."""
        name = item["metadata"]["name"]
        if name in self.started:
            return
        self.started.add(name)
        if item["metadata"]["labels"]["steerlm.dev/stage"] == "prepare":
            self.pods[item["metadata"]["labels"]["steerlm.dev/pipeline"]] = name
        patch = asyncio.get_running_loop().create_task(self.set_status(name, RUNNING))
        self.patches.add(patch)
        patch.add_done_callback(self.patches.discard)


@contextlib.asynccontextmanager
async def connected(cluster: LocalCluster) -> AsyncIterator[Scale]:
    """An administrator with watches."""
    tls = ssl.create_default_context(cafile=cluster.layout.certificate("ca.crt"))
    tls.load_cert_chain(cluster.layout.certificate("admin.crt"), cluster.layout.certificate("admin.key"))
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(
        cluster.layout.server, connector=aiohttp.TCPConnector(ssl=tls), timeout=timeout, read_bufsize=1 << 20
    ) as session:
        scale = Scale(session)
        watches = [
            asyncio.ensure_future(scale.watch(PIPELINES, "", scale.see_pipeline)),
            asyncio.ensure_future(scale.watch(JOBS, "steerlm.dev/stage=prepare", scale.see_job)),
            asyncio.ensure_future(scale.watch(PODS, "steerlm.dev/component=work", scale.see_pod)),
        ]
        yield scale
        for task in (*watches, *scale.patches):
            task.cancel()
        await asyncio.gather(*watches, *scale.patches, return_exceptions=True)


async def until(what: str, found: Callable[[], int], wanted: int) -> None:
    """Wait for a count. Raises TimeoutError."""
    started = time.monotonic()
    while (count := found()) < wanted:
        if time.monotonic() - started > PATIENCE:
            raise TimeoutError(f"{what}: {count} of {wanted} within {PATIENCE:.0f} s")
        await asyncio.sleep(0.05)


def memory(pid: int) -> tuple[int, int]:
    """Resident memory of a process and its peak, MiB."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) >> 10, int(lines["VmHWM"].split()[0]) >> 10


def processor_seconds(pid: int) -> float:
    """Processor time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def counted(operator: operating.Operator) -> collections.Counter[str]:
    """The operator's own counts: requests by method, transitions."""
    found: collections.Counter[str] = collections.Counter()
    for line in operator.page("/metrics").text.splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("steerlm_api_requests_total{"):
            found[name.split('method="')[1].split('"')[0]] += int(float(value))
            found["requests"] += int(float(value))
        elif name.startswith(("steerlm_stage_attempts_total{", "steerlm_stage_results_total{")):
            found["transitions"] += int(float(value))
    return found


async def restart(operator: operating.Operator, count: int) -> list[tuple[str, str]]:
    """A new life among so many pipelines."""
    operator.kill()
    started = time.monotonic()
    operator.start()
    assert operator.process
    pid = operator.process.pid
    await asyncio.to_thread(operator.until_page, "/readyz", 200)

    def looked_at() -> int:
        return int(operator.metric("steerlm_reconcile_duration_seconds_count"))

    await until("pipelines looked at", looked_at, count)
    return [
        ("operator killed: all looked at again after, s", f"{time.monotonic() - started:.0f}"),
        ("its memory then, MiB (peak)", "{} ({})".format(*memory(pid))),
    ]


async def measure(cluster: LocalCluster, operator: operating.Operator, count: int) -> list[tuple[str, str]]:
    """The rows of the table."""
    assert operator.process
    pid = operator.process.pid
    async with connected(cluster) as scale:
        names = [f"p{number}" for number in range(count)]
        started = time.monotonic()
        await asyncio.gather(*map(scale.apply, names))
        applied = time.monotonic() - started
        await until("pipelines that run", lambda: len(scale.running), count)
        running = time.monotonic() - started
        used, before = processor_seconds(pid), counted(operator)
        ending = names[:ENDS]
        for number, name in enumerate(ending):
            due = started + running + number / ENDS_PER_SECOND
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await scale.set_status(scale.pods[name], DONE)
        await until("stages told to be done", lambda: len(scale.told.keys() & scale.ended.keys()), len(ending))
        steady = time.monotonic() - started - running
        late = sorted(max(0.0, scale.told[name] - scale.ended[name]) for name in ending)
    resident, peak = memory(pid)
    change = counted(operator) - before
    by_method = ", ".join(f"{method} {change[method] / change['transitions']:.1f}" for method in ("GET", "POST", "PUT", "PATCH", "DELETE"))
    rows = [
        ("pipelines", f"{count}"),
        ("all applied within, s", f"{applied:.0f}"),
        ("all running after, s", f"{running:.0f}"),
        ("operator's processor time until then, s", f"{used:.0f}"),
        (f"{len(ending)} of the Jobs ended, {ENDS_PER_SECOND:.0f} a second, within, s", f"{steady:.0f}"),
        ("a Job's end to its pipeline's status, median, s", f"{statistics.median(late):.2f}"),
        ("a Job's end to its pipeline's status, p99, s", f"{late[int(len(late) * 0.99) - 1]:.2f}"),
        ("operator's memory, MiB (peak)", f"{resident} ({peak})"),
        ("API requests, watches left out, a stage started or ended", f"{change['requests'] / change['transitions']:.1f}"),
        ("of them", by_method),
    ]
    return rows + await restart(operator, count)


def run(cluster: LocalCluster, folder: Path, count: int) -> None:
    """Operator up, measure, print."""
    kubeconfig = operating.install(cluster, operating.granted(Helm(folder)), folder)
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})
    cluster.wait("serviceaccount", "default", lambda _: True, namespace=NAMESPACE)
    cluster.stop("kube-scheduler")  # without a node it would only say so, of every pod, again and again
    operator = operating.Operator(kubeconfig, folder / "operator", progressSeconds=3600, resyncSeconds=300)
    hidden = folder / "hidden"
    hidden.mkdir()
    (hidden / "kubernetes.py").write_text("raise ImportError\n")
    operator.environment["PYTHONPATH"] = str(hidden)
    operator.start()
    try:
        operator.until_page("/readyz", 200)
        for name, value in asyncio.run(measure(cluster, operator, count)):
            print(f"{name:58} {value:>10}")
    finally:
        operator.kill()


def main(count: int = 1000) -> None:
    """Print the table, or why there is none."""
    reason = unavailable() or (None if binaries.built() else "its programs are not built: python tests/cluster/cluster.py build")
    if reason:
        print(f"operator: skipped, no cluster: {reason}")
        return
    with tempfile.TemporaryDirectory() as folder:
        cluster = LocalCluster.up(Path(folder) / "cluster", node=False, tied=True)
        try:
            run(cluster, Path(folder), count)
        finally:
            cluster.down()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
