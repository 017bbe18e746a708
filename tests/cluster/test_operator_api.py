"""The operator, as a real process with the chart's rights, on a real API server with the real controllers: every transition.

There is no node here: a stand-in sets pods' status as a node would, from what each test says their processes do.
"""

from __future__ import annotations

import pytest

from tests.cluster.pipelines import TWO_NODES
from tests.cluster.stand_in import DONE, component_of, index_of, job_of, stage_of


@pytest.mark.usefixtures("operator")
def test_a_pipeline_runs_to_its_end_in_a_restricted_namespace(pipelines, kubelet):
    node = kubelet()
    parallel = TWO_NODES
    pipelines.create(trainValue=parallel, annotate={"shards": 3, "servers": {"replicas": 2}}, serve={"enabled": True})
    end = pipelines.until(lambda s: s.holds("Complete") and s.holds("Serving"))
    assert end.phase == "Succeeded"
    assert {stage["phase"] for stage in end.stages.values()} == {"Succeeded"}
    assert {stage["attempt"] for stage in end.stages.values()} == {1}
    assert end.stages["train-value"]["metrics"] == {"loss": "1.5"}
    assert end.stages["annotate"]["inputHash"] == "a" * 64
    assert end.status["annotation"]["succeeded"] == 3
    assert end.status["endpoints"] == {"serve": f"http://p-serve.{pipelines.name}.svc:8000"}
    assert set(pipelines.jobs()) == {
        "p-prepare-1", "p-train-value-1", "p-annotate-1", "p-annotate-merge-1", "p-train-steer-1", "p-evaluate-1",
    }  # fmt: skip
    assert len([name for name in node.seen if name.startswith("p-train-value-1-")]) == 2
    pipelines.until_gone(pipelines.apps.list_namespaced_deployment, label_selector="steerlm.dev/component=server")
    events = pipelines.events()
    assert events.count("Complete") == events.count("Started") == 1
    assert events.count("StageStarted") == events.count("StageSucceeded") == 5


@pytest.mark.usefixtures("operator")
def test_failures_are_counted_and_disruptions_are_not(pipelines, kubelet):
    plays = {"p-prepare-1": {"exit": 1, "message": "boom"}, "p-prepare-2": {"exit": 143, "disrupted": True}, "p-prepare-3": {"exit": 143}}
    kubelet(lambda pod: plays.get(job_of(pod), DONE if stage_of(pod) == "prepare" else None))
    pipelines.create()
    found = pipelines.until(lambda s: s.stages.get("prepare", {}).get("phase") == "Succeeded")
    assert (found.stages["prepare"]["attempt"], found.stages["prepare"]["countedFailures"]) == (4, 1)


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize(
    ("play", "reason", "attempts"),
    [
        ({"exit": 65, "message": "data.jsonl:3: turn has no from"}, "BadData", 1),
        ({"exit": 137, "reason": "OOMKilled"}, "OutOfMemory", 1),
        ({"exit": 1, "message": "boom"}, "StageError", 3),
    ],
)
def test_what_ends_a_pipeline(pipelines, kubelet, play, reason, attempts):
    kubelet(lambda pod: play)
    pipelines.create()
    end = pipelines.until(lambda s: s.holds("Failed"))
    assert (end.phase, end.reason("Failed"), end.reason("Complete")) == ("Failed", reason, reason)
    assert end.stages["prepare"]["attempt"] == attempts
    assert play.get("message", "memory") in end.conditions["Failed"]["message"]


@pytest.mark.usefixtures("operator")
def test_a_shard_that_always_fails_is_named(pipelines, kubelet):
    def behaves(pod):
        work = component_of(pod) == "work"
        failing = work and stage_of(pod) == "annotate" and index_of(pod) == "1"
        return {"exit": 69, "message": "no server answers"} if failing else DONE

    kubelet(behaves)
    pipelines.create(annotate={"shards": 2}, runPolicy={"retriesPerShard": 0})
    end = pipelines.until(lambda s: s.holds("Failed"))
    assert end.reason("Failed") == "ShardsFailed"
    assert "shard 1" in end.conditions["Failed"]["message"]
    assert end.status["annotation"]["failedIndexes"] == "1"
    pipelines.until_gone(pipelines.apps.list_namespaced_deployment)


@pytest.mark.usefixtures("operator")
def test_suspended_is_quiet_and_resumes_where_it_was(pipelines, kubelet):
    held = {"train-value"}
    kubelet(lambda pod: None if stage_of(pod) in held else DONE)
    pipelines.create()
    pipelines.until(lambda s: s.stages.get("train-value", {}).get("attempt") == 1 and "p-train-value-1" in pipelines.jobs())
    pipelines.edit(suspend=True)
    pipelines.until(lambda s: s.holds("Suspended"))
    assert set(pipelines.jobs()) == {"p-prepare-1"}
    pipelines.until_gone(pipelines.core.list_namespaced_pod, label_selector="steerlm.dev/stage=train-value")
    held.clear()
    pipelines.edit(suspend=False)
    end = pipelines.until(lambda s: s.holds("Complete"))
    assert end.stages["prepare"]["attempt"] == 1
    assert (end.stages["train-value"]["attempt"], end.stages["train-value"]["countedFailures"]) == (2, 0)


@pytest.mark.usefixtures("operator")
def test_restart_goes_on_where_it_failed_or_does_stages_again(pipelines, kubelet):
    bad = {"exit": 78}
    kubelet(lambda pod: bad if bad and stage_of(pod) == "train-steer" else DONE)
    pipelines.create()
    pipelines.until(lambda s: s.holds("Failed"))
    bad.clear()
    pipelines.edit(restart={"token": "one"})
    end = pipelines.until(lambda s: s.holds("Complete"))
    assert {name: stage["attempt"] for name, stage in end.stages.items()} == {
        "prepare": 1, "train-value": 1, "annotate": 1, "train-steer": 2, "evaluate": 1,
    }  # fmt: skip
    pipelines.edit(restart={"token": "two", "fromStage": "annotate"})
    end = pipelines.until(lambda s: s.holds("Complete") and s.status.get("observedRestartToken") == "two")
    assert end.stages["annotate"]["attempt"] == 2
    env = {e.name: e.value for e in pipelines.jobs()["p-annotate-2"].spec.template.spec.containers[0].env}
    assert env["STEERLM_SALT"] == "two"


@pytest.mark.usefixtures("operator")
def test_quota_is_named_and_waited_out(pipelines, kubelet):
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    pipelines.core.create_namespaced_resource_quota(pipelines.name, quota)
    kubelet()
    pipelines.create()
    found = pipelines.until(lambda s: s.reason("Progressing") == "QuotaExceeded")
    assert "exceeded quota: none" in found.conditions["Progressing"]["message"]
    pipelines.core.delete_namespaced_resource_quota("none", pipelines.name)
    assert pipelines.until(lambda s: s.holds("Complete")).stages["prepare"]["attempt"] == 1


@pytest.mark.usefixtures("operator")
def test_what_it_waits_for_is_named(pipelines, kubelet):
    kubelet(lambda pod: {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}})
    pipelines.create(storage={"claimName": "mine"})
    found = pipelines.until(lambda s: s.reason("StorageReady") == "ClaimNotFound")
    assert "make it" in found.conditions["StorageReady"]["message"]
    assert not pipelines.jobs()
    claim = {"metadata": {"name": "mine"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}
    pipelines.core.create_namespaced_persistent_volume_claim(pipelines.name, claim)
    found = pipelines.until(lambda s: s.reason("Progressing") == "ImageNotAvailable")
    assert "worker:test" in found.conditions["Progressing"]["message"] or "image x" in found.conditions["Progressing"]["message"]
    pipelines.edit(runPolicy={"pendingDeadlineSeconds": 1})
    assert pipelines.until(lambda s: s.holds("Failed")).reason("Failed") == "PendingDeadlineExceeded"


@pytest.mark.usefixtures("operator")
def test_absent_engines_are_refused_with_a_condition(pipelines):
    pipelines.create("a", scheduling={"queueName": "q"})
    pipelines.create("b", engine="JobSet", trainValue=TWO_NODES)
    assert pipelines.until(lambda s: s.reason("EngineAvailable"), "a").reason("EngineAvailable") == "KueueNotInstalled"
    assert pipelines.until(lambda s: s.reason("EngineAvailable"), "b").reason("EngineAvailable") == "JobSetNotInstalled"
    assert not pipelines.jobs()


@pytest.mark.usefixtures("operator")
def test_what_the_api_server_cannot_check_is_a_condition(pipelines):
    pipelines.create(evaluate={"base": {"helpfulness": 99}})
    found = pipelines.until(lambda s: s.reason("Accepted") == "InvalidSpec")
    assert "helpfulness" in found.conditions["Accepted"]["message"]
    assert not pipelines.jobs()


@pytest.mark.usefixtures("operator")
def test_deleting_leaves_only_the_retained_claim(pipelines, kubelet):
    kubelet(lambda pod: None if job_of(pod) == "p-evaluate-1" else DONE)
    pipelines.create(annotate={"shards": 2}, trainValue=TWO_NODES)
    pipelines.until(lambda s: s.stages.get("evaluate", {}).get("reason") == "PodsStarting")
    pipelines.delete()
    for listing in (pipelines.batch.list_namespaced_job, pipelines.apps.list_namespaced_deployment, pipelines.core.list_namespaced_service):
        pipelines.until_gone(listing, label_selector="steerlm.dev/pipeline=p")
    pipelines.until_gone(pipelines.core.list_namespaced_config_map, label_selector="steerlm.dev/pipeline=p")
    pipelines.until_gone(pipelines.core.list_namespaced_pod)
    assert [claim.metadata.name for claim in pipelines.core.list_namespaced_persistent_volume_claim(pipelines.name).items] == ["p-data"]


@pytest.mark.usefixtures("operator")
def test_a_finished_pipeline_goes_after_its_time_to_live(pipelines, kubelet):
    kubelet()
    pipelines.create(runPolicy={"ttlSecondsAfterFinished": 1})
    pipelines.until(lambda s: s.holds("Complete"))
    pipelines.until_deleted()


def test_killing_the_operator_again_and_again_changes_nothing(pipelines, kubelet, operator):
    """kill -9 at a different moment of each life. Every Job is made once, every stage is attempted once."""
    kubelet()
    pipelines.create(annotate={"shards": 2, "servers": {"replicas": 2}})
    for stage in ("prepare", "train-value", "annotate", "train-steer"):
        pipelines.until(lambda s, stage=stage: s.stages.get(stage, {}).get("attempt") or s.holds("Complete"))
        operator.kill()
        operator.start()
    end = pipelines.until(lambda s: s.holds("Complete"))
    assert {stage["attempt"] for stage in end.stages.values()} == {1}
    assert len(pipelines.jobs()) == 6
