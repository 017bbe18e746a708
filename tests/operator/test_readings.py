"""What Jobs and pods say becomes the right word: cause, counted or not, permanent or not."""

import datetime

import pytest
from steerlm_operator.readings import classify_refusal, completed, flat_metrics, read_job
from steerlm_operator.server_readings import read_servers

from nemo_steerlm.core.environment import parse_result_line

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)


def job(kind=None, reason="", message="", ago=60):
    time = (NOW - datetime.timedelta(seconds=ago)).strftime("%Y-%m-%dT%H:%M:%SZ")
    conditions = [{"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": time}] if kind else []
    return {"metadata": {"name": "j"}, "spec": {}, "status": {"conditions": conditions}}


def pod(
    code=None,
    *,
    reason="",
    message="",
    index=0,
    at="2026-01-01T00:00:00Z",
    disrupted=False,
    deleted=None,
    phase=None,
    waiting=None,
    unschedulable=None,
):
    status = {"phase": phase or ("Succeeded" if code == 0 else "Failed" if code else "Running"), "conditions": []}
    if code is not None:
        ended = {"exitCode": code, "reason": reason, "message": message, "finishedAt": at}
        status["containerStatuses"] = [{"state": {"terminated": ended}}]
    if waiting:
        status |= {
            "phase": "Pending",
            "containerStatuses": [{"image": "x:1", "state": {"waiting": {"reason": waiting[0], "message": waiting[1]}}}],
        }
    if disrupted:
        status["conditions"].append({"type": "DisruptionTarget", "status": "True", "message": "preempted by a higher priority"})
    if unschedulable:
        status["phase"] = "Pending"
        status["conditions"].append({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": unschedulable})
    metadata = {"name": f"j-{index}", "annotations": {"batch.kubernetes.io/job-completion-index": str(index)}}
    if deleted:  # the time by which it has to be gone, half a minute after somebody asked
        metadata |= {"deletionTimestamp": deleted, "deletionGracePeriodSeconds": 30}
    return {"metadata": metadata, "status": status}


LIMIT = "Job has reached the specified backoff limit"
FAILURES = [
    # pods, the Job's message, reason, counted, permanent
    ([pod(2, message="steerlm: unknown stage")], "", "WrongManifest", True, True),
    ([pod(65)], "", "BadData", True, True),
    ([pod(78)], "", "BadConfiguration", True, True),
    ([pod(1, message="Traceback\nValueError: x")], "", "StageError", True, False),
    ([pod(69)], "", "ServerUnreachable", True, False),
    ([pod(75)], "", "TryAgain", True, False),
    ([pod(137, reason="OOMKilled")], "", "OutOfMemory", True, True),
    ([pod(137, reason="Error")], "", "Killed", True, False),
    ([pod(143)], "", "Terminated", False, False),
    ([pod(143, disrupted=True)], "", "Disrupted", False, False),
    ([pod(137, disrupted=True, reason="Error")], "", "Disrupted", False, False),
    # One rank out of memory, the others stopped for it.
    ([pod(143, index=0), pod(137, reason="OOMKilled", index=1)], "", "OutOfMemory", True, True),
    # One rank failed, the other a second later because of it.
    ([pod(1, index=0, at="2026-01-01T00:00:09Z"), pod(75, index=1, at="2026-01-01T00:00:01Z")], "", "TryAgain", True, False),
    # The pods are gone; the Job's message tells.
    ([], "Container main for pod a/b failed with exit code 65 matching FailJob rule at index 2", "BadData", True, True),
    ([], "Pod a/b has condition DisruptionTarget matching FailJob rule at index 0", "Disrupted", False, False),
    ([], LIMIT, "Disrupted", False, False),
    # Deleted at 0:00, and so stubborn that it was killed; another rank failed of it.
    ([pod(137, at="2026-01-01T00:00:30Z", deleted="2026-01-01T00:00:30Z")], LIMIT, "Disrupted", False, False),
    (
        [pod(1, index=0, at="2026-01-01T00:00:09Z"), pod(137, index=1, at="2026-01-01T00:00:02Z", deleted="2026-01-01T00:00:30Z")],
        LIMIT,
        "Disrupted",
        False,
        False,
    ),
    # Failed at 0:01; the Job's controller then deleted the other rank, or somebody this one.
    (
        [pod(1, index=0, at="2026-01-01T00:00:01Z"), pod(137, index=1, at="2026-01-01T00:00:01Z", deleted="2026-01-01T00:00:31Z")],
        LIMIT,
        "StageError",
        True,
        False,
    ),
    ([pod(1, at="2026-01-01T00:00:01Z", deleted="2026-01-01T00:01:00Z")], LIMIT, "StageError", True, False),
    # It ended well of its deletion, and the rank that lost it did not.
    (
        [pod(1, index=0)],
        "Container main for pod a/b failed with exit code 143 matching FailJob rule at index 1",
        "Terminated",
        False,
        False,
    ),
    # The node would not have it.
    ([pod(phase="Failed")], LIMIT, "JobFailed", True, False),
]


@pytest.mark.parametrize(("pods", "message", "reason", "counted", "permanent"), FAILURES)
def test_failures(pods, message, reason, counted, permanent):
    reading = read_job(job("Failed", "BackoffLimitExceeded", message), pods, NOW)
    assert (reading.state, reading.reason, reading.counted, reading.permanent) == ("Failed", reason, counted, permanent)
    assert reading.message


@pytest.mark.parametrize("pods", [[], [pod()]])
def test_pods_that_say_how_a_job_failed_are_waited_for_a_moment(pods):
    assert read_job(job("Failed", "BackoffLimitExceeded", LIMIT, ago=1), pods, NOW).state == "Lagging"
    assert read_job(job("Failed", "BackoffLimitExceeded", LIMIT, ago=1), [pod(1)], NOW).reason == "StageError"


def test_a_pod_that_is_being_deleted_is_noticed_unless_another_has_failed():
    going = pod(index=1, deleted="2026-01-01T00:00:30Z")
    assert read_job(job(), [pod(), going], NOW).taken == "j-1"
    assert read_job(job(), [pod(), pod(index=1)], NOW).taken is None
    assert read_job(job(), [pod(1), going], NOW).taken is None


def test_the_shard_that_failed_last_is_named_and_is_final():
    pods = [
        pod(1, index=2, at="2026-01-01T00:00:01Z", message="no route"),
        pod(1, index=1, at="2026-01-01T00:00:09Z", message="no room"),
        pod(1, index=3, at="2026-01-01T00:00:05Z", message="no time"),
        pod(0, index=0, at="2026-01-01T00:00:10Z"),
    ]
    reading = read_job(job("Failed", "FailedIndexes", "Job has failed indexes"), pods, NOW)
    assert (reading.reason, reading.permanent) == ("ShardsFailed", True)
    assert "shard 1: exit code 1: j-1: no room" in reading.message


WAITING = [
    (pod(waiting=("ImagePullBackOff", "not found")), "ImageNotAvailable", True),
    (pod(waiting=("CreateContainerConfigError", 'secret "w" not found')), "SecretNotFound", True),
    (pod(waiting=("ContainerCreating", "")), "PodsStarting", False),
    (pod(unschedulable="0/3 nodes are available: 3 Insufficient nvidia.com/gpu."), "Unschedulable", True),
    (pod(unschedulable='persistentvolumeclaim "x" not found'), "ClaimNotFound", True),
    (pod(unschedulable="0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims."), "ClaimUnbound", True),
]


@pytest.mark.parametrize(("waiting", "reason", "blocked"), WAITING)
def test_what_pods_wait_for(waiting, reason, blocked):
    reading = read_job(job(), [waiting], NOW)
    assert (reading.state, reading.reason, reading.blocked) == ("Waiting", reason, blocked)


def test_a_pod_that_runs_waits_for_no_node_whatever_the_scheduler_said_of_it():
    late = pod(unschedulable="no nodes available to schedule pods")
    late["status"]["phase"] = "Running"
    assert read_job(job(), [late], NOW).state == "Running"


def test_a_quota_that_lets_no_pod_be_made_is_named():
    said = 'Error creating: pods "j" is forbidden: exceeded quota: gpus, requested: 8, used: 0, limited: 4'
    reading = read_job(job(), [], NOW, creation_failure=said)
    assert (reading.state, reading.reason, reading.blocked) == ("Waiting", "QuotaExceeded", True)


def test_a_queue_that_has_not_admitted_is_waited_for():
    assert read_job({**job(), "spec": {"suspend": True}}, [], NOW).reason == "AwaitingAdmission"


def test_results_come_from_the_first_rank_and_are_waited_for_a_moment():
    message = '{"cached": true, "inputHash": "aa", "metrics": {"loss": 1.25}}'
    assert read_job(job("Complete"), [pod(0, index=1), pod(0, message=message)], NOW).result["cached"] is True
    assert read_job(job("Complete", ago=1), [], NOW).state == "Lagging"
    assert read_job(job("Complete", ago=60), [], NOW).state == "Succeeded"
    assert read_job(job("Complete", ago=1), [pod(0, message="some log line")], NOW).state == "Succeeded"


def test_servers():
    ready = {"spec": {"replicas": 2}, "status": {"readyReplicas": 1}}
    assert read_servers(ready, [], NOW).ready == 1
    slow = {"spec": {}, "status": {"conditions": [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]}}
    assert read_servers(slow, [], NOW).failed
    crashing = pod()
    crashing["status"]["containerStatuses"] = [{"lastState": {"terminated": {"exitCode": 78, "message": "wrong model"}}, "state": {}}]
    reading = read_servers({"spec": {}, "status": {}}, [crashing], NOW)
    assert (reading.failed, reading.permanent, reading.reason) == (True, True, "BadConfiguration")
    refused = {"spec": {}, "status": {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: x"}]}}
    assert read_servers(refused, [], NOW).reason == "QuotaExceeded"


GATED = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}
NO_ROOM = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}


@pytest.mark.parametrize(
    ("status", "failed", "reason"),
    [
        ({"phase": "Pending", "conditions": [GATED]}, False, "AwaitingAdmission"),
        ({"phase": "Pending", "conditions": [NO_ROOM]}, False, "Unschedulable"),
        ({"phase": "Running", "startTime": "2025-12-31T23:59:00Z"}, False, "ServersStarting"),
        ({"phase": "Running", "startTime": "2025-12-31T23:49:00Z"}, True, "ServersNotReady"),
    ],
    ids=["in the queue", "no node", "admitted a minute ago", "too slow"],
)
def test_servers_are_not_late_before_they_could_start(status, failed, reason):
    """A Deployment's deadline runs while Kueue holds its pods back; an attempt must not end, or count, for that."""
    exceeded = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    late = {"spec": {"progressDeadlineSeconds": 600}, "status": {"conditions": [exceeded]}}
    reading = read_servers(late, [{"metadata": {"name": "s-0"}, "spec": {}, "status": status}], NOW)
    assert (reading.failed, reading.reason) == (failed, reason)


def server(*, state=None, last=None, restarts=0, started="2025-12-31T23:59:00Z"):
    container = {"image": "x:1", "restartCount": restarts, "state": state or {"running": {}}}
    if last:
        container["lastState"] = {"terminated": {"exitCode": 1, **last}}
    return {"metadata": {"name": "s-0"}, "status": {"phase": "Running", "startTime": started, "containerStatuses": [container]}}


BACK_OFF = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}}
PULLING = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}


@pytest.mark.parametrize(
    ("found", "reason", "permanent", "words"),
    [
        (server(state=BACK_OFF, last={"message": "loading\nCUDA error: no device"}, restarts=3), "ServersCrash", False, "no device"),
        (server(last={"exitCode": 137, "reason": "OOMKilled"}, restarts=1), "OutOfMemory", True, "spec.resources.servers"),
        (server(state=PULLING, started="2025-12-31T23:49:00Z"), "ImageNotAvailable", False, "no such image"),
    ],
    ids=["crash loop", "out of memory", "no image"],
)
def test_servers_that_cannot_become_well_are_not_waited_for(found, reason, permanent, words):
    reading = read_servers({"spec": {}, "status": {}}, [found], NOW)
    assert (reading.failed, reading.reason, reading.permanent) == (True, reason, permanent)
    assert words in reading.message


def test_an_engine_in_a_container_of_its_own_is_read_too():
    found = server(state={"waiting": {"reason": "PodInitializing"}})
    [engine] = server(state=BACK_OFF, last={"message": "loading\nno kernel for this GPU"}, restarts=3)["status"]["containerStatuses"]
    found["status"]["initContainerStatuses"] = [engine]
    reading = read_servers({"spec": {}, "status": {}}, [found], NOW)
    assert (reading.failed, reading.reason) == (True, "ServersCrash")
    assert "no kernel for this GPU" in reading.message


@pytest.mark.parametrize("found", [server(state=BACK_OFF, last={"message": "x"}, restarts=2), server(state=PULLING), server(restarts=5)])
def test_servers_that_may_become_well_are_waited_for(found):
    assert not read_servers({"spec": {}, "status": {}}, [found], NOW).failed


def test_ranks_wait_for_each_other():
    starting = {"metadata": {"name": "j-1", "annotations": {}}, "status": {"phase": "Pending"}}
    reading = read_job(job(), [pod(), starting], NOW, together=2)
    assert (reading.state, reading.reason, reading.blocked) == ("Waiting", "PodsStarting", False)
    assert "1 of 2 pods run" in reading.message
    assert read_job(job(), [pod(), pod(index=1)], NOW, together=2).state == "Running"
    assert read_job(job(), [pod(0), pod(index=1)], NOW, together=2).state == "Running"
    assert read_job(job(), [pod(), starting], NOW).state == "Running"  # shards do not


@pytest.mark.parametrize(
    ("status", "message", "reason"),
    [
        (403, "exceeded quota: jobs", "QuotaExceeded"),
        (403, "violates PodSecurity", "AdmissionRefused"),
        (403, "cannot create", "Forbidden"),
        (422, "Only one reference can have Controller set to true", "NameConflict"),
        (409, "Apply failed with 1 conflict", "NameConflict"),
        (422, "spec: Invalid value", "InvalidObject"),
        (404, "the server could not find the requested resource", "KindNotInstalled"),
    ],
)
def test_refusals(status, message, reason):
    assert classify_refusal(status, message)[0] == reason


def test_small_things():
    assert completed("0-3,7") == 5
    assert completed("") == 0
    assert flat_metrics({"a": {"b": 1.23456789}, "c": "x", "d": [1]}) == {"a.b": "1.23457", "c": "x"}
    assert len(flat_metrics({str(i): i for i in range(100)})) == 32
    assert parse_result_line("Killed") == {}
    assert parse_result_line("[1]") == {}
