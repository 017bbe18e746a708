"""The operator, as a real process with the chart's rights, on a real API server with the real controllers: every transition.

There is no node here: a stand-in sets pods' status as a node would, from what each test says their processes do.
"""

from __future__ import annotations

import pytest

from tests.cluster.pipelines import TWO_NODES
from tests.cluster.stand_in import CACHED, DONE, EVALUATED, RUNNING, component_of, index_of, job_of, stage_of


@pytest.mark.usefixtures("operator")
def test_a_pipeline_runs_to_its_end_in_a_restricted_namespace(pipelines, kubelet):
    node = kubelet()
    parallel = TWO_NODES
    serve = {"enabled": True, "insecure": True, "replicas": 2}
    pipelines.create(trainValue=parallel, annotate={"shards": 3, "servers": {"replicas": 2}}, serve=serve)
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
def test_shards_start_with_one_ready_server_and_only_their_pods_reach_the_servers(pipelines, kubelet):
    ready = []

    def behaves(pod):
        if component_of(pod) == "server" and stage_of(pod) == "annotate":
            ready.append(pod.metadata.name)
            return RUNNING if len(ready) == 1 else None
        return None if component_of(pod) == "work" and stage_of(pod) == "annotate" else DONE

    kubelet(behaves)
    pipelines.create(annotate={"shards": 2, "servers": {"replicas": 3}})
    found = pipelines.until(lambda s: "p-annotate-1" in pipelines.jobs())
    assert (found.status["annotation"]["serversReady"], found.reason("ServersReady")) == (1, "ServersReady")
    pipelines.until_listed(pipelines.batch.list_namespaced_job, lambda job: job.metadata.name == "p-annotate-1" and job.status.active == 2)
    pods = {pod.metadata.name: component_of(pod) for pod in pipelines.core.list_namespaced_pod(pipelines.name).items}
    policies = {item.metadata.name: item.spec for item in pipelines.networking.list_namespaced_network_policy(pipelines.name).items}
    assert policies.keys() == {"p-work-network", "p-server-network", "p-serve-network"}
    for component in ("work", "server"):
        assert pipelines.selected(policies[f"p-{component}-network"].pod_selector) == {n for n, c in pods.items() if c == component}
    (rule,) = policies["p-server-network"].ingress
    assert [(peer.namespace_selector, peer.ip_block) for peer in rule._from] == [(None, None)]
    assert pipelines.selected(rule._from[0].pod_selector) == set(pods)
    assert [port.port for port in rule.ports] == [8000]
    assert {port.port for rule in policies["p-server-network"].egress for port in rule.ports} == {53, 5353}


@pytest.mark.usefixtures("operator")
def test_scaling_makes_servers_come_and_go_while_shards_run(pipelines, kubelet):
    kubelet(lambda pod: RUNNING if stage_of(pod) == "annotate" else DONE)
    pipelines.create(annotate={"shards": 2})
    pipelines.until(lambda s: s.stages.get("annotate", {}).get("phase") == "Running")
    scale = pipelines.scale()
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (1, 1)
    assert len(pipelines.labelled(scale["status"]["selector"])) == 1
    pipelines.scale(3)
    pipelines.until(lambda s: s.status["annotation"]["serversReady"] == 3)
    pipelines.scale(1)
    pipelines.until(lambda s: s.status["annotation"]["serversReady"] == 1)
    assert pipelines.get()["status"]["stages"][2]["attempt"] == 1


@pytest.mark.usefixtures("operator")
def test_bootstrap_rounds_sample_label_and_train_again(pipelines, kubelet):
    node = kubelet(lambda pod: EVALUATED if stage_of(pod) == "evaluate" else DONE)
    pipelines.create(bootstrap={"rounds": 2, "requireAny": True}, serve={"enabled": True, "insecure": True})
    rounds = set()
    end = pipelines.until(lambda s: rounds.add(s.status.get("round")) or (s.holds("Complete") and s.holds("Serving")))
    assert rounds == {None, 1, 2}
    named = ["prepare", "train-value", "annotate", "train-steer"]
    named += [f"bootstrap-{number}-{what}" for number in (1, 2) for what in ("sample", "train")]
    assert list(end.stages) == [*named, "evaluate"]
    assert set(end.attempts().values()) == {1}
    for number in (1, 2):  # both models' servers: one writes, one reads
        assert {name.rpartition("-1-")[0] for name in node.seen if name.startswith(f"p-bootstrap-{number}-sample-")} == {
            f"p-bootstrap-{number}-sample", f"p-bootstrap-{number}-sample-value", f"p-bootstrap-{number}-sample-steer",
        }  # fmt: skip
    served = pipelines.deployments()["p-serve"].spec.template.spec.containers[0].args
    assert any("evaluate/hf" in argument for argument in served)


@pytest.mark.usefixtures("operator")
def test_pipelines_that_share_a_claim_find_each_other_s_stages(pipelines, kubelet):
    """What a pod of the second one reports is tried on a real node in ``test_pipeline.py``; here is what the operator makes of it."""
    cached = ("prepare", "train-value")
    kubelet(lambda pod: CACHED if pod.metadata.name.startswith("b-") and stage_of(pod) in cached else DONE)
    claim = {"metadata": {"name": "shared"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}
    pipelines.core.create_namespaced_persistent_volume_claim(pipelines.name, claim)
    for name in ("a", "b"):
        pipelines.create(name, storage={"claimName": "shared", "directory": "runs/both"})
        end = pipelines.until(lambda s: s.holds("Complete"), name)
    assert {stage: entry["phase"] for stage, entry in end.stages.items()} == {
        "prepare": "CacheHit", "train-value": "CacheHit", "annotate": "Succeeded", "train-steer": "Succeeded", "evaluate": "Succeeded",
    }  # fmt: skip
    assert end.stages["prepare"]["inputHash"] == "c" * 64
    assert pipelines.events().count("StageCacheHit") == 2
    made = pipelines.jobs()
    for stage in ("prepare", "train-value"):
        first, second = (made[f"{name}-{stage}-1"].spec.template.spec for name in ("a", "b"))
        assert first.containers[0].args == second.containers[0].args
        volumes = [{v.persistent_volume_claim.claim_name for v in each.volumes if v.persistent_volume_claim} for each in (first, second)]
        assert volumes == [{"shared"}, {"shared"}]


@pytest.mark.usefixtures("operator")
def test_a_deadline_ends_what_runs(pipelines, kubelet):
    kubelet(lambda _: RUNNING)
    pipelines.create()
    pipelines.until(lambda s: s.stages.get("prepare", {}).get("phase") == "Running")
    pipelines.edit(runPolicy={"activeDeadlineSeconds": 1})
    end = pipelines.until(lambda s: s.holds("Failed"))
    assert (end.reason("Failed"), end.message("Failed")) == ("DeadlineExceeded", "not done within 1 s")
    assert end.stages["prepare"]["phase"] == "Failed"
    pipelines.until_gone(pipelines.batch.list_namespaced_job)


@pytest.mark.usefixtures("operator")
def test_the_end_outlives_the_jobs(pipelines, kubelet):
    """kubeflow/trainer#3737: Jobs that their time to live removed are not made again, whatever changes later."""
    kubelet()
    pipelines.create(runPolicy={"jobTtlSecondsAfterFinished": 1})
    pipelines.until(lambda s: s.holds("Complete"))
    pipelines.until_gone(pipelines.batch.list_namespaced_job)
    pipelines.edit(serve={"enabled": True, "insecure": True})
    end = pipelines.until(lambda s: s.holds("Serving"))
    assert set(end.attempts().values()) == {1}
    assert not pipelines.jobs()


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
    wanted = {
        "kueue": ("KueueNotInstalled", {"scheduling": {"queueName": "q"}}),
        "jobset": ("JobSetNotInstalled", {"engine": "JobSet"}),
        "volcano": ("GangSchedulerNotInstalled", {"scheduling": {"gang": "Volcano"}}),
        "coscheduling": ("GangSchedulerNotInstalled", {"scheduling": {"gang": "Coscheduling"}}),
    }
    for name, (_, spec) in wanted.items():
        pipelines.create(name, trainValue=TWO_NODES, **spec)
    for name, (reason, _) in wanted.items():
        found = pipelines.until(lambda s: s.reason("EngineAvailable"), name)
        assert (found.reason("EngineAvailable"), found.holds("EngineAvailable")) == (reason, False)
        assert "which this cluster does not have" in found.message("EngineAvailable")
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
    # Whichever the operator sees first: that the pod is there, or that the scheduler finds no node for it.
    pipelines.until(lambda s: s.stages.get("evaluate", {}).get("reason") in ("PodsStarting", "Unschedulable", "ClaimUnbound"))
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


@pytest.mark.slow
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
