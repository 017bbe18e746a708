"""Faults between the operator and the API server: each run ends where the state machine says, and makes nothing twice."""

from __future__ import annotations

import pytest

from tests.cluster.fault_proxy import FaultProxy
from tests.cluster.operating import Operator

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
    running = Operator(proxy.kubeconfig, tmp_path / "operator", namespaces=[namespace])
    running.start()
    yield running
    running.kill()


def check_the_end(pipelines):
    end = pipelines.until(lambda s: s.ended, seconds=240)
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


def test_the_operator_is_killed_between_its_writes(proxy, proxied, pipelines, kubelet):
    """kill -9 once every fifth write has arrived, before its answer has; the next life carries on."""
    kubelet()
    kills = []

    def kill(number):
        if number % 5 == 0 and len(kills) < 5:
            kills.append(number)
            proxied.kill()
            proxied.start()

    proxy.after_write = kill
    pipelines.create(annotate={"shards": 2})
    check_the_end(pipelines)
    assert len(kills) == 5
