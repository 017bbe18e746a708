"""A stage of which a queue admits only a part: it says why, keeps that for a while, then gives it back and asks for everything again."""

import datetime

import pytest
from steerlm_operator import admission
from steerlm_operator.draft import workload_prefix

from tests.operator.lifetime import Lifetime

GATED = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}
SUSPENDED = {"type": "Suspended", "status": "True"}
SHORT = "insufficient unused quota for cpu in flavor any, 1 more needed"


class Queued(Lifetime):
    """Whose stage annotate is the next one; servers and their client wait for a queue as a test says."""

    def __init__(self, **policy):
        super().__init__()
        self.begin(shards=1, rounds=0, nodes=1, done=2)
        self.edit(runPolicy=policy)
        self.settle()

    @property
    def entry(self):
        return {stage["name"]: stage for stage in self.status()["stages"]}["annotate"]

    def written(self):
        return self.world.now.strftime("%Y-%m-%dT%H:%M:%SZ")

    def wait(self, seconds):
        self.world.now += datetime.timedelta(seconds=seconds)
        for _ in range(2):  # what the queue said is read after the first
            self.settle()

    def server(self, status):
        """A pod of the stage's Deployment."""
        (deployment,) = self.world.deployments()
        owner = {"kind": "ReplicaSet", "uid": deployment["metadata"]["uid"], "name": "r"}
        name = f"s-{next(self.world.ids)}"
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        pod = {"kind": "Pod", "metadata": {"name": name, "labels": labels, "ownerReferences": [owner]}, "status": status}
        self.world.pods[name] = self.world._stamp(pod)
        deployment["status"] = {"readyReplicas": int(status["phase"] == "Running")}
        self.settle()
        return name

    def part(self):
        """The servers run, and the client's Job is suspended."""
        self.server({"phase": "Running", "startTime": self.written()})
        (job,) = self.world.jobs()
        job["status"] = {"conditions": [{**SUSPENDED, "lastTransitionTime": self.written()}]}
        self.settle()
        return job


@pytest.fixture
def queued():
    made = []

    def make(**policy):
        made.append(Queued(**policy))
        return made[-1]

    yield make
    for each in made:
        each.loop.close()


def test_what_was_admitted_is_given_back_and_asked_for_again(queued):
    life = queued()
    job = life.part()
    life.world.said_by_queue = {f"job-{job['metadata']['name']}-": SHORT}
    life.wait(299)
    assert (life.entry["reason"], life.entry["attempt"]) == ("AwaitingAdmission", 1)
    assert life.entry["message"].endswith(SHORT)
    life.wait(1)
    assert (life.entry["phase"], life.entry["reason"]) == ("Retrying", "AdmittedInPart")
    assert SHORT in life.entry["message"]
    assert (life.world.jobs(), life.world.deployments()) == ([], [])
    assert (life.entry["countedFailures"], life.entry["disruptions"]) == (0, 0)
    life.wait(500)
    assert (life.entry["phase"], life.entry["attempt"]) == ("Queued", 2)
    life.part()
    (job,) = life.world.jobs()
    job["status"] = {}
    life.world.start_pods(job)
    life.wait(1000)
    assert life.entry["phase"] == "Running"


def test_what_waits_as_a_whole_holds_nothing_and_waits_on(queued):
    life = queued()
    pod = life.server(GATED)
    life.world.said_by_queue = {f"pod-{pod}-": SHORT}
    life.wait(100_000)
    assert (life.entry["phase"], life.entry["reason"], life.entry["attempt"]) == ("Queued", "AwaitingAdmission", 1)
    assert life.entry["message"].endswith(SHORT)


def test_one_of_a_role_s_servers_is_enough(queued):
    life = queued()
    life.server({"phase": "Pending", "startTime": life.written()})
    life.server(GATED)
    life.wait(100_000)
    assert (life.entry["phase"], life.entry["reason"], life.entry["attempt"]) == ("Queued", "ServersStarting", 1)


def test_servers_that_the_queue_takes_back_are_no_failure_of_their_client(queued):
    life = queued()
    job = life.part()
    job["status"] = {}
    life.world.start_pods(job)
    life.settle()
    (server,) = [name for name in life.world.pods if name.startswith("s-")]
    del life.world.pods[server]
    life.server(GATED)
    assert life.entry["phase"] == "Running"  # its client waits for them
    life.fail_job(job, "exit 69")
    life.settle()
    assert (life.entry["phase"], life.entry["reason"]) == ("Retrying", "Disrupted")
    assert (life.entry["countedFailures"], life.entry["disruptions"]) == (0, 1)


def test_the_time_in_the_queue_counts_from_the_first_time_that_was_asked(queued):
    life = queued(pendingDeadlineSeconds=1000)
    for _ in range(2):
        life.part()
        life.wait(300)
        assert life.entry["reason"] == "AdmittedInPart"
        life.wait(450)
    assert (life.entry["phase"], life.entry["reason"]) == ("Failed", "PendingDeadlineExceeded")


def test_two_pipelines_do_not_pause_for_the_same_time():
    pauses = [admission.pause(uid, attempt, 300) for uid in "ab" for attempt in (1, 2)]
    assert len(set(pauses)) == 4
    assert all(150 <= pause < 450 for pause in pauses)


def test_a_workload_is_found_by_its_owner():
    assert workload_prefix({"kind": "Job", "metadata": {"name": "p-annotate-1"}}) == "job-p-annotate-1-"
    assert workload_prefix({"metadata": {"name": "p-annotate-value-1-x"}}) == "pod-p-annotate-value-1-x-"
    owned = {"kind": "Job", "metadata": {"name": "p-1-node-0", "ownerReferences": [{"kind": "JobSet", "name": "p-1"}]}}
    assert workload_prefix(owned) == "jobset-p-1-"
