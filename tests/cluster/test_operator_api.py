"""The operator, as a real process, on a real API server with the real Job, Deployment, quota and garbage controllers.

There is no node here: ``Kubelet`` sets pods' status as a node would, from what each test says their processes do.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import kubernetes
import pytest
import yaml

pytestmark = pytest.mark.cluster

GROUP = {"group": "steerlm.dev", "version": "v1alpha1", "plural": "steerlmpipelines"}
DEADLINE = 60
OK = {"exit": 0, "message": json.dumps({"cached": False, "inputHash": "a" * 64, "metrics": {"loss": 1.5}})}


class Cluster:
    """One namespace of an API server."""

    def __init__(self, kubeconfig, namespace):
        self.namespace = namespace
        client = kubernetes.config.new_client_from_config(str(kubeconfig))
        self.core = kubernetes.client.CoreV1Api(client)
        self.batch = kubernetes.client.BatchV1Api(client)
        self.apps = kubernetes.client.AppsV1Api(client)
        self.custom = kubernetes.client.CustomObjectsApi(client)

    def create(self, name="p", **spec):
        base = {
            "attributes": {"preset": "helpsteer"},
            "data": {"records": {"train": "t.jsonl", "validation": "v.jsonl"}},
            "model": {"base": "base"},
            "trainValue": {"globalBatchSize": 8},
            "trainSteer": {"globalBatchSize": 8},
            "annotate": {"shards": 1},
        }
        body = {"apiVersion": "steerlm.dev/v1alpha1", "kind": "SteerLMPipeline", "metadata": {"name": name}, "spec": base | spec}
        return self.custom.create_namespaced_custom_object(namespace=self.namespace, body=body, **GROUP)

    def edit(self, name="p", **spec):
        self.custom.patch_namespaced_custom_object(namespace=self.namespace, name=name, body={"spec": spec}, **GROUP)

    def get(self, name="p"):
        return self.custom.get_namespaced_custom_object(namespace=self.namespace, name=name, **GROUP)

    def until(self, predicate, name="p", seconds=DEADLINE):
        """The first state of the pipeline for which ``predicate`` holds, from a watch."""
        end, last = time.monotonic() + seconds, None
        # Version 0: from the API server's cache at once. The newest one needs a round trip that older etcds answer late.
        while time.monotonic() < end:
            watch = kubernetes.watch.Watch()
            stream = watch.stream(
                self.custom.list_namespaced_custom_object, namespace=self.namespace, field_selector=f"metadata.name={name}",
                resource_version="0", timeout_seconds=max(1, int(end - time.monotonic())), **GROUP,
            )  # fmt: skip
            for event in stream:
                last = event["object"]
                if predicate(Status(last)):
                    watch.stop()
                    return Status(last)
        raise AssertionError(f"never came: {yaml.safe_dump((last or {}).get('status'))}")

    def until_gone(self, listing, **selector):
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            found = listing(self.namespace, **selector)
            if not found.items:
                return
            watch = kubernetes.watch.Watch()
            for _ in watch.stream(listing, self.namespace, resource_version=found.metadata.resource_version, timeout_seconds=5, **selector):
                watch.stop()
        raise AssertionError([item.metadata.name for item in found.items])

    def jobs(self):
        return {job.metadata.name: job for job in self.batch.list_namespaced_job(self.namespace).items}

    def events(self):
        return [
            e.reason for e in self.core.list_namespaced_event(self.namespace, field_selector="involvedObject.kind=SteerLMPipeline").items
        ]


class Status:
    """A pipeline's status, read."""

    def __init__(self, resource):
        self.resource = resource
        self.status = resource.get("status") or {}
        self.phase = self.status.get("phase")
        self.conditions = {c["type"]: c for c in self.status.get("conditions", [])}
        self.stages = {s["name"]: s for s in self.status.get("stages", [])}

    def holds(self, kind):
        return self.conditions.get(kind, {}).get("status") == "True"

    def reason(self, kind):
        return self.conditions.get(kind, {}).get("reason")


class Kubelet(threading.Thread):
    """Gives pods the status that a node would. ``behaves(pod)`` says what its process does; None leaves it pending."""

    def __init__(self, cluster, behaves=lambda pod: OK):
        super().__init__(daemon=True)
        self.cluster, self.behaves = cluster, behaves
        self.stopped = threading.Event()
        self.seen = []

    def run(self):
        while not self.stopped.is_set():
            watch = kubernetes.watch.Watch()
            try:
                for event in watch.stream(
                    self.cluster.core.list_namespaced_pod, self.cluster.namespace, resource_version="0", timeout_seconds=5
                ):
                    if (
                        event["type"] == "ADDED"
                        and event["object"].status.phase == "Pending"
                        and not event["object"].metadata.deletion_timestamp
                    ):
                        self._play(event["object"])
                    if self.stopped.is_set():
                        break
            except (kubernetes.client.ApiException, OSError) as error:
                if getattr(error, "status", None) not in (404, 409, 410):
                    raise

    def _play(self, pod):
        does = self.behaves(pod)
        if does is None:
            return
        self.seen.append(pod.metadata.name)
        container = {"name": "main", "image": "x", "imageID": "x", "restartCount": 0}
        if pod.metadata.labels["steerlm.dev/component"] in ("server", "serve"):
            ready = [{"type": kind, "status": "True"} for kind in ("Ready", "ContainersReady", "Initialized", "PodScheduled")]
            running = {**container, "ready": True, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
            self._patch(pod, {"phase": "Running", "conditions": ready, "containerStatuses": [running]})
            return
        if "waiting" in does:
            self._patch(
                pod, {"phase": "Pending", "containerStatuses": [{**container, "ready": False, "state": {"waiting": does["waiting"]}}]}
            )
            return
        ended = {
            "exitCode": does["exit"],
            "reason": does.get("reason", "Error"),
            "message": does.get("message", ""),
            "startedAt": None,
            "finishedAt": None,
        }
        status = {"phase": "Failed" if does["exit"] else "Succeeded"}
        status["containerStatuses"] = [{**container, "ready": False, "state": {"terminated": ended}}]
        if does.get("disrupted"):
            status["conditions"] = [
                {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "preempted"}
            ]
        self._patch(pod, status)

    def _patch(self, pod, status):
        try:
            self.cluster.core.patch_namespaced_pod_status(pod.metadata.name, self.cluster.namespace, {"status": status})
        except kubernetes.client.ApiException as error:
            if error.status != 404:
                raise


class Operator:
    """A real operator process."""

    def __init__(self, kubeconfig, folder):
        config = {
            "images": {"worker": "worker:test"},
            "storage": {"claimTemplate": {"size": "1Gi", "accessMode": "ReadWriteOnce"}},
            "scheduling": {"deviceResource": "none"},
            "address": "127.0.0.1:0",
            "retrySeconds": 0.5,
            "progressSeconds": 5,
        }
        self.config = folder / "operator.yaml"
        self.config.write_text(yaml.safe_dump(config))
        self.environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "STEERLM_OPERATOR_CONFIG": str(self.config)}
        self.log = folder / "operator.log"

    def start(self):
        with self.log.open("a") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "steerlm_operator"], env=self.environment, stdout=log, stderr=log)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        self.process.terminate()
        assert self.process.wait(30) == 0


@pytest.fixture(scope="module")
def steerlm_crd(control_plane):
    """The committed CustomResourceDefinition, served."""
    path = Path(__file__).parents[2] / "k8s/crd/steerlmpipelines.yaml"
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(path))
    control_plane.kubectl("wait", "--for=condition=Established", "crd/steerlmpipelines.steerlm.dev", "--timeout=60s")


@pytest.fixture(scope="module")
def operator(control_plane, steerlm_crd, tmp_path_factory):
    running = Operator(control_plane.kubeconfig, tmp_path_factory.mktemp("operator"))
    running.start()
    yield running
    running.stop()
    log = running.log.read_text()
    assert "Traceback" not in log, log


@pytest.fixture
def cluster(control_plane, namespace):
    return Cluster(control_plane.kubeconfig, namespace)


@pytest.fixture
def kubelet(cluster):
    """A function that starts the stand-in for a node."""
    started = []

    def start(behaves=lambda pod: OK):
        started.append(Kubelet(cluster, behaves))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        each.stopped.set()
    for each in started:
        each.join(20)


def stage_of(pod):
    return pod.metadata.labels["steerlm.dev/stage"]


@pytest.mark.usefixtures("operator")
def test_a_pipeline_runs_to_its_end_in_a_restricted_namespace(cluster, kubelet):
    node = kubelet()
    parallel = {"parallel": {"nodes": 2}, "globalBatchSize": 8}
    cluster.create(trainValue=parallel, annotate={"shards": 3, "servers": {"replicas": 2}}, serve={"enabled": True})
    end = cluster.until(lambda s: s.holds("Complete") and s.holds("Serving"))
    assert end.phase == "Succeeded"
    assert {stage["phase"] for stage in end.stages.values()} == {"Succeeded"}
    assert {stage["attempt"] for stage in end.stages.values()} == {1}
    assert end.stages["train-value"]["metrics"] == {"loss": "1.5"}
    assert end.stages["annotate"]["inputHash"] == "a" * 64
    assert end.status["annotation"]["succeeded"] == 3
    assert end.status["endpoints"] == {"serve": f"http://p-serve.{cluster.namespace}.svc:8000"}
    assert set(cluster.jobs()) == {
        "p-prepare-1", "p-train-value-1", "p-annotate-1", "p-annotate-merge-1", "p-train-steer-1", "p-evaluate-1",
    }  # fmt: skip
    assert len([name for name in node.seen if name.startswith("p-train-value-1-")]) == 2
    cluster.until_gone(cluster.apps.list_namespaced_deployment, label_selector="steerlm.dev/component=server")
    events = cluster.events()
    assert events.count("Complete") == events.count("Started") == 1
    assert events.count("StageStarted") == events.count("StageSucceeded") == 5


@pytest.mark.usefixtures("operator")
def test_failures_are_counted_and_disruptions_are_not(cluster, kubelet):
    plays = {"p-prepare-1": {"exit": 1, "message": "boom"}, "p-prepare-2": {"exit": 143, "disrupted": True}, "p-prepare-3": {"exit": 143}}
    kubelet(lambda pod: plays.get(pod.metadata.labels["batch.kubernetes.io/job-name"], OK if stage_of(pod) == "prepare" else None))
    cluster.create()
    found = cluster.until(lambda s: s.stages.get("prepare", {}).get("phase") == "Succeeded")
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
def test_what_ends_a_pipeline(cluster, kubelet, play, reason, attempts):
    kubelet(lambda pod: play)
    cluster.create()
    end = cluster.until(lambda s: s.holds("Failed"))
    assert (end.phase, end.reason("Failed"), end.reason("Complete")) == ("Failed", reason, reason)
    assert end.stages["prepare"]["attempt"] == attempts
    assert play.get("message", "memory") in end.conditions["Failed"]["message"]


@pytest.mark.usefixtures("operator")
def test_a_shard_that_always_fails_is_named(cluster, kubelet):
    def behaves(pod):
        work = pod.metadata.labels["steerlm.dev/component"] == "work"
        failing = work and stage_of(pod) == "annotate" and pod.metadata.annotations["batch.kubernetes.io/job-completion-index"] == "1"
        return {"exit": 69, "message": "no server answers"} if failing else OK

    kubelet(behaves)
    cluster.create(annotate={"shards": 2}, runPolicy={"retriesPerShard": 0})
    end = cluster.until(lambda s: s.holds("Failed"))
    assert end.reason("Failed") == "ShardsFailed"
    assert "shard 1" in end.conditions["Failed"]["message"]
    assert end.status["annotation"]["failedIndexes"] == "1"
    cluster.until_gone(cluster.apps.list_namespaced_deployment)


@pytest.mark.usefixtures("operator")
def test_suspended_is_quiet_and_resumes_where_it_was(cluster, kubelet):
    held = {"train-value"}
    kubelet(lambda pod: None if stage_of(pod) in held else OK)
    cluster.create()
    cluster.until(lambda s: s.stages.get("train-value", {}).get("attempt") == 1 and "p-train-value-1" in cluster.jobs())
    cluster.edit(suspend=True)
    cluster.until(lambda s: s.holds("Suspended"))
    assert set(cluster.jobs()) == {"p-prepare-1"}
    cluster.until_gone(cluster.core.list_namespaced_pod, label_selector="steerlm.dev/stage=train-value")
    held.clear()
    cluster.edit(suspend=False)
    end = cluster.until(lambda s: s.holds("Complete"))
    assert end.stages["prepare"]["attempt"] == 1
    assert (end.stages["train-value"]["attempt"], end.stages["train-value"]["countedFailures"]) == (2, 0)


@pytest.mark.usefixtures("operator")
def test_restart_goes_on_where_it_failed_or_does_stages_again(cluster, kubelet):
    bad = {"exit": 78}
    kubelet(lambda pod: bad if bad and stage_of(pod) == "train-steer" else OK)
    cluster.create()
    cluster.until(lambda s: s.holds("Failed"))
    bad.clear()
    cluster.edit(restart={"token": "one"})
    end = cluster.until(lambda s: s.holds("Complete"))
    assert {name: stage["attempt"] for name, stage in end.stages.items()} == {
        "prepare": 1, "train-value": 1, "annotate": 1, "train-steer": 2, "evaluate": 1,
    }  # fmt: skip
    cluster.edit(restart={"token": "two", "fromStage": "annotate"})
    end = cluster.until(lambda s: s.holds("Complete") and s.status.get("observedRestartToken") == "two")
    assert end.stages["annotate"]["attempt"] == 2
    env = {e.name: e.value for e in cluster.jobs()["p-annotate-2"].spec.template.spec.containers[0].env}
    assert env["STEERLM_SALT"] == "two"


@pytest.mark.usefixtures("operator")
def test_quota_is_named_and_waited_out(cluster, kubelet):
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    cluster.core.create_namespaced_resource_quota(cluster.namespace, quota)
    kubelet()
    cluster.create()
    found = cluster.until(lambda s: s.reason("Progressing") == "QuotaExceeded")
    assert "exceeded quota: none" in found.conditions["Progressing"]["message"]
    cluster.core.delete_namespaced_resource_quota("none", cluster.namespace)
    assert cluster.until(lambda s: s.holds("Complete")).stages["prepare"]["attempt"] == 1


@pytest.mark.usefixtures("operator")
def test_what_it_waits_for_is_named(cluster, kubelet):
    kubelet(lambda pod: {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}})
    cluster.create(storage={"claimName": "mine"})
    found = cluster.until(lambda s: s.reason("StorageReady") == "ClaimNotFound")
    assert "make it" in found.conditions["StorageReady"]["message"]
    assert not cluster.jobs()
    claim = {"metadata": {"name": "mine"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}
    cluster.core.create_namespaced_persistent_volume_claim(cluster.namespace, claim)
    found = cluster.until(lambda s: s.reason("Progressing") == "ImageNotAvailable")
    assert "worker:test" in found.conditions["Progressing"]["message"] or "image x" in found.conditions["Progressing"]["message"]
    cluster.edit(runPolicy={"pendingDeadlineSeconds": 1})
    assert cluster.until(lambda s: s.holds("Failed")).reason("Failed") == "PendingDeadlineExceeded"


@pytest.mark.usefixtures("operator")
def test_absent_engines_are_refused_with_a_condition(cluster):
    cluster.create("a", scheduling={"queueName": "q"})
    cluster.create("b", engine="JobSet", trainValue={"parallel": {"nodes": 2}, "globalBatchSize": 8})
    assert cluster.until(lambda s: s.reason("EngineAvailable"), "a").reason("EngineAvailable") == "KueueNotInstalled"
    assert cluster.until(lambda s: s.reason("EngineAvailable"), "b").reason("EngineAvailable") == "JobSetNotInstalled"
    assert not cluster.jobs()


@pytest.mark.usefixtures("operator")
def test_what_the_api_server_cannot_check_is_a_condition(cluster):
    cluster.create(evaluate={"base": {"helpfulness": 99}})
    found = cluster.until(lambda s: s.reason("Accepted") == "InvalidSpec")
    assert "helpfulness" in found.conditions["Accepted"]["message"]
    assert not cluster.jobs()


@pytest.mark.usefixtures("operator")
def test_deleting_leaves_only_the_retained_claim(cluster, kubelet):
    kubelet(lambda pod: None if pod.metadata.labels.get("batch.kubernetes.io/job-name") == "p-evaluate-1" else OK)
    cluster.create(annotate={"shards": 2}, trainValue={"parallel": {"nodes": 2}, "globalBatchSize": 8})
    cluster.until(lambda s: s.stages.get("evaluate", {}).get("reason") == "PodsStarting")
    cluster.custom.delete_namespaced_custom_object(namespace=cluster.namespace, name="p", **GROUP)
    for listing in (cluster.batch.list_namespaced_job, cluster.apps.list_namespaced_deployment, cluster.core.list_namespaced_service):
        cluster.until_gone(listing, label_selector="steerlm.dev/pipeline=p")
    cluster.until_gone(cluster.core.list_namespaced_config_map, label_selector="steerlm.dev/pipeline=p")
    cluster.until_gone(cluster.core.list_namespaced_pod)
    assert [claim.metadata.name for claim in cluster.core.list_namespaced_persistent_volume_claim(cluster.namespace).items] == ["p-data"]


@pytest.mark.usefixtures("operator")
def test_a_finished_pipeline_goes_after_its_time_to_live(cluster, kubelet):
    kubelet()
    cluster.create(runPolicy={"ttlSecondsAfterFinished": 1})
    cluster.until(lambda s: s.holds("Complete"))
    end = time.monotonic() + DEADLINE
    with pytest.raises(kubernetes.client.ApiException, match="404"):
        while time.monotonic() < end:
            cluster.get()


def test_killing_the_operator_again_and_again_changes_nothing(cluster, kubelet, operator):
    """kill -9 at a different moment of each life. Every Job is made once, every stage is attempted once."""
    kubelet()
    cluster.create(annotate={"shards": 2, "servers": {"replicas": 2}})
    for stage in ("prepare", "train-value", "annotate", "train-steer"):
        cluster.until(lambda s, stage=stage: s.stages.get(stage, {}).get("attempt") or s.holds("Complete"))
        operator.kill()
        operator.start()
    end = cluster.until(lambda s: s.holds("Complete"))
    assert {stage["attempt"] for stage in end.stages.values()} == {1}
    assert len(cluster.jobs()) == 6
