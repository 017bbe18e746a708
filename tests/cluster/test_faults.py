"""Faults between the operator and the API server: each run ends where the state machine says, and makes nothing twice."""

from __future__ import annotations

import pytest
from local_cluster.cluster import LocalCluster

from tests.cluster.fault_proxy import FaultProxy
from tests.cluster.operating import Operator
from tests.cluster.pipelines import TWO_NODES
from tests.cluster.stand_in import DONE, RUNNING, job_of

pytestmark = pytest.mark.slow

JOBS = {"p-prepare-1", "p-train-value-1", "p-annotate-1", "p-annotate-merge-1", "p-train-steer-1", "p-evaluate-1"}


@pytest.fixture
def proxy(operator_account, tmp_path):
    """A proxy in front of the API server."""
    made = FaultProxy(operator_account.kubeconfig, tmp_path)
    yield made
    made.close()


@pytest.fixture
def proxied(proxy, namespace, tmp_path):
    """An operator of the test's namespace alone, behind the proxy."""
    yield from running(proxy.kubeconfig, namespace, tmp_path)


@pytest.fixture
def direct(operator_account, namespace, tmp_path):
    """An operator of the test's namespace alone."""
    yield from running(operator_account.kubeconfig, namespace, tmp_path)


def running(kubeconfig, namespace, folder):
    operator = Operator(kubeconfig, folder / "operator", namespaces=[namespace])
    operator.start()
    yield operator
    operator.kill()


def check_the_end(pipelines, seconds=240):
    end = pipelines.until(lambda s: s.ended, seconds=seconds)
    assert end.holds("Complete"), end.status
    assert set(end.attempts().values()) == {1}
    assert set(pipelines.jobs()) == JOBS


@pytest.mark.parametrize("status", [409, 429, 500])
@pytest.mark.usefixtures("proxied")
def test_every_third_write_is_refused(proxy, pipelines, kubelet, status):
    kubelet()
    proxy.fault = lambda method, path, number: status if method != "GET" and number % 3 == 0 else None
    pipelines.create(annotate={"shards": 2})
    pipelines.until(lambda s: s.stages.get("train-value", {}).get("attempt"), seconds=120)
    assert proxy.faults
    proxy.fault = lambda method, path, number: None
    check_the_end(pipelines)


@pytest.mark.usefixtures("proxied")
def test_watches_are_cut(proxy, pipelines, kubelet):
    kubelet()
    proxy.watch_events = 6
    pipelines.create(annotate={"shards": 2})
    pipelines.until(lambda s: s.stages.get("train-value", {}).get("attempt"), seconds=120)
    proxy.watch_events = None
    check_the_end(pipelines)


@pytest.mark.parametrize("stream", [False, True], ids=["by status", "in the stream"])
def test_a_watch_too_old_to_go_on_begins_again(proxy, proxied, pipelines, kubelet, stream):
    """410 Gone: what changed meanwhile is in no watch any longer, a Job that somebody deleted among it."""
    node = kubelet(lambda pod: RUNNING if job_of(pod) == "p-prepare-1" else DONE)
    pipelines.create(annotate={"shards": 2})
    pipelines.until(lambda s: s.stages.get("prepare", {}).get("phase") == "Running", seconds=120)
    with proxy.expired(in_stream=stream):
        pipelines.batch.delete_namespaced_job("p-prepare-1", pipelines.name, propagation_policy="Background")
        pipelines.until_gone(pipelines.batch.list_namespaced_job)
        pipelines.until_gone(pipelines.core.list_namespaced_pod)
        node.behaves = lambda _: DONE
    check_the_end(pipelines)
    assert proxied.process.poll() is None, "it went on by itself"


@pytest.mark.parametrize("moment", ["while it writes", "while all is quiet"])
@pytest.mark.usefixtures("direct")
def test_the_api_server_is_restarted(control_plane, pipelines, kubelet, moment):
    if not isinstance(control_plane, LocalCluster):
        pytest.skip("another's API server is not restarted")
    node = kubelet(lambda pod: RUNNING if job_of(pod) == "p-train-value-1" else DONE)
    pipelines.create(annotate={"shards": 2})
    if moment == "while all is quiet":
        pipelines.until(lambda s: s.stages.get("train-value", {}).get("phase") == "Running")
    control_plane.restart("kube-apiserver")
    before = pipelines.until(lambda s: s.stages.get("train-value", {}).get("phase") == "Running", seconds=120)
    node.play(*pipelines.pods("p-train-value-1"), DONE)
    check_the_end(pipelines)
    assert before.attempts()["train-value"] == 1


def test_the_operator_is_killed_after_each_of_its_writes(proxy, proxied, pipelines, kubelet):
    """kill -9 once a write has arrived, before its answer has. Each life writes once, and the next carries on, to the end."""
    kubelet()
    lives = []

    def kill(number):
        lives.append(number)
        proxied.kill()
        proxied.start()

    proxy.after_write = kill
    pipelines.create(annotate={"shards": 2})
    check_the_end(pipelines, seconds=600)
    assert len(lives) == proxy.writes > 20


@pytest.mark.usefixtures("direct")
def test_a_pod_deleted_by_hand_counts_no_failure(pipelines, kubelet):
    """Killed as its time to end was over; the other rank, which lost it, fails by itself."""
    held = {"p-train-value-1": RUNNING, "p-annotate-1": None}
    node = kubelet(lambda pod: held.get(job_of(pod), DONE))
    pipelines.create(trainValue=TWO_NODES)
    pipelines.until_listed(
        pipelines.batch.list_namespaced_job, lambda job: job.metadata.name == "p-train-value-1" and job.status.ready == 2
    )
    pipelines.until(lambda s: s.stages.get("train-value", {}).get("phase") == "Running")
    one, other = pipelines.pods("p-train-value-1")
    pipelines.core.delete_namespaced_pod(one.metadata.name, pipelines.name)
    pipelines.until(lambda s: s.stages["train-value"].get("reason") == "PodDeleted")
    node.play(other, {"exit": 1, "message": "connection reset by peer"})
    node.play(one, {"exit": 137})
    end = pipelines.until(lambda s: s.stages["train-value"]["phase"] == "Succeeded")
    assert (end.stages["train-value"]["attempt"], end.stages["train-value"]["countedFailures"]) == (2, 0)
