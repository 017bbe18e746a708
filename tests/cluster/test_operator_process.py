"""The operator as a process: its health, its metrics, its log."""

from __future__ import annotations

import signal

import pytest
from local_cluster.cluster import LocalCluster

from tests.cluster.operating import Operator
from tests.cluster.stand_in import DONE, job_of

STAGES = ("prepare", "train-value", "annotate", "train-steer", "evaluate")


@pytest.fixture
def own_cluster(control_plane):
    """Asked for before an operator is started, which nothing would wait for."""
    if not isinstance(control_plane, LocalCluster):
        pytest.skip("stops the API server, which on another's cluster is not for a test to do")
    return control_plane


@pytest.fixture
def alone(operator_account, namespace, tmp_path):
    """An operator of the test's namespace alone, which counts as stuck after two seconds."""
    running = Operator(operator_account.kubeconfig, tmp_path / "operator", namespaces=[namespace], resyncSeconds=1, stuckSeconds=2)
    running.start()
    yield running
    running.stop()


def test_health_fails_while_reconciling_has_stopped(own_cluster, pipelines, alone):
    """The API server takes connections and answers none: no request fails, and nothing goes on."""
    pipelines.create()
    pipelines.until(lambda s: s.stages.get("prepare", {}).get("attempt"))
    alone.until_page("/healthz", 200)
    alone.until_page("/readyz", 200)
    own_cluster.signal("kube-apiserver", signal.SIGSTOP)
    try:
        said = alone.until_page("/healthz", 500)
    finally:
        own_cluster.signal("kube-apiserver", signal.SIGCONT)
    assert (
        f"pipelines wait for more than 2 s, {pipelines.name}/p among them" in said or "regular look at every pipeline has stopped" in said
    )
    assert alone.until_page("/healthz", 200) == "ok\n"


def test_metrics_and_log_tell_what_happened(pipelines, kubelet, alone):
    plays = {"p-prepare-1": {"exit": 1, "message": "boom"}}
    kubelet(lambda pod: plays.get(job_of(pod), DONE))
    pipelines.create(annotate={"shards": 2, "servers": {"replicas": 2}})
    pipelines.until(lambda s: s.holds("Complete"))
    alone.until_metric(1, "steerlm_pipelines", phase="Succeeded")
    assert {phase: alone.metric("steerlm_pipelines", phase=phase) for phase in ("Running", "Failed")} == {"Running": 0, "Failed": 0}
    for stage in STAGES:
        attempts = alone.metric("steerlm_stage_attempts_total", stage=stage)
        ends = [alone.metric("steerlm_stage_results_total", stage=stage, result=result) for result in ("Retrying", "Succeeded")]
        assert (attempts, ends) == ((2, [1, 1]) if stage == "prepare" else (1, [0, 1]))
        assert alone.metric("steerlm_stage_duration_seconds_count", stage=stage) == 1
    assert alone.metric("steerlm_api_requests_total", method="PATCH", status="201") > 0
    assert alone.metric("steerlm_status_writes_total", result="200") > 5
    assert alone.metric("steerlm_reconcile_duration_seconds_count") > 5
    assert alone.metric("steerlm_last_reconcile_timestamp_seconds") > 1.7e9
    assert alone.metric("steerlm_annotation_servers_ready", pipeline="p") == 0

    told = [line for line in alone.lines() if line.get("pipeline") == "p"]
    assert {line["namespace"] for line in told} == {pipelines.name}
    assert all(line.keys() >= {"timestamp", "severity", "message"} for line in told)
    reasons = [line["reason"] for line in told]
    assert (reasons[0], reasons[-1]) == ("Started", "Complete")
    assert (reasons.count("StageStarted"), reasons.count("StageSucceeded"), reasons.count("StageRetrying")) == (6, 5, 1)
