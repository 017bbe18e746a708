"""Single decisions by their effect: what is applied and deleted, what the status says, and when somebody looks again."""

import datetime

import pytest
from steerlm_operator import names
from steerlm_operator.config import OperatorConfig
from steerlm_operator.draft import Observed, Refusal
from steerlm_operator.reconcile import decide

from tests.operator.lifetime import Lifetime

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
CONFIG = OperatorConfig(retrySeconds=10)
CLAIM = {"metadata": {"name": "data"}, "spec": {}, "status": {"phase": "Bound"}}
PREPARE = ("Job", "demo-prepare-1")


def written(time):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


class Demo:
    """A resource whose first stage was begun at NOW, what was applied then, and what is seen of it."""

    def __init__(self, resource):
        self.resource = resource
        first = decide(resource, Observed(claim=CLAIM, apis=frozenset()), CONFIG, NOW)
        self.keep(first)
        self.job = next(item for item in first.apply if item["kind"] == "Job")
        self.job["metadata"]["uid"] = "job-uid"

    def keep(self, decision):
        self.resource = {**self.resource, "status": decision.status.model_dump(mode="json", by_alias=True, exclude_none=True)}

    @property
    def prepare(self):
        return self.resource["status"]["stages"][0]

    def decide(self, seconds=0, **seen):
        """The decision so long after NOW, which becomes the status."""
        observed = Observed(**{"claim": CLAIM, "apis": frozenset(), **seen})
        decision = decide(self.resource, observed, CONFIG, NOW + datetime.timedelta(seconds=seconds))
        self.keep(decision)
        return decision

    def pod(self, phase="Running", owner="job-uid", code=None, disrupted=False):
        labels = {**self.job["metadata"]["labels"], names.JOB_NAME: PREPARE[1]}
        status = {"phase": phase, "conditions": [{"type": "DisruptionTarget", "status": "True"}] if disrupted else []}
        if code is not None:
            status["containerStatuses"] = [{"state": {"terminated": {"exitCode": code, "finishedAt": written(NOW)}}}]
        return {"metadata": {"name": "pod", "labels": labels, "ownerReferences": [{"uid": owner}]}, "status": status}

    def failed(self):
        """The Job's children entry once it has failed."""
        condition = {"type": "Failed", "status": "True", "reason": "PodFailurePolicy", "message": "", "lastTransitionTime": written(NOW)}
        return {PREPARE: {**self.job, "status": {"conditions": [condition]}}}

    def condition(self, kind):
        found = {c["type"]: c for c in self.resource["status"]["conditions"]}[kind]
        return found["status"], found["reason"]


@pytest.fixture
def demo(resource):
    """A function: a demo with other spec fields."""
    return lambda **spec: Demo(resource(**spec))


@pytest.mark.parametrize("spec", [{"managedBy": "example.com/other"}, {}], ids=["managed by another", "being deleted"])
def test_what_is_not_ours_to_manage_is_left_as_it_is(demo, resource, spec):
    status = demo().resource["status"]
    made = {**resource(**spec, suspend=True), "status": status}
    if not spec:
        made["metadata"]["deletionTimestamp"] = written(NOW)
    decision = decide(made, Observed(claim=CLAIM, apis=frozenset(), children={PREPARE: demo().job}), CONFIG, NOW)
    assert (decision.apply, decision.delete, decision.events, decision.again) == ((), (), (), None)
    assert decision.status.model_dump(mode="json", by_alias=True, exclude_none=True) == status


def test_an_engine_is_waited_for_until_the_api_server_says_what_it_has(resource):
    asks = resource(scheduling={"queueName": "queue"})
    decision = decide(asks, Observed(claim=CLAIM, apis=None), CONFIG, NOW)
    [condition] = [found for found in decision.status.conditions if found.type == "Progressing"]
    assert (condition.status, condition.reason) == ("False", "EngineUnknown")
    assert "kueue.x-k8s.io" in condition.message
    assert not decision.apply
    assert decision.again is not None
    assert decide(resource(), Observed(claim=CLAIM, apis=None), CONFIG, NOW).apply


KUEUE = frozenset({"kueue.x-k8s.io"})
NOT_KNOWN = {
    "the API groups": {"apis": None},
    "the group of the queue": {"apis": frozenset()},
    "the claim": {"apis": KUEUE, "claim": {}},
}


@pytest.mark.parametrize("unknown", NOT_KNOWN.values(), ids=NOT_KNOWN)
def test_what_runs_stays_while_something_it_needed_is_not_to_be_seen(resource, unknown):
    """An API server that has just started serves its own API before those of definitions; whoever asks then must not end a training."""
    known = {"claim": CLAIM, "apis": KUEUE}
    begun = decide(resource(scheduling={"queueName": "queue"}), Observed(**known), CONFIG, NOW)
    job = next(item for item in begun.apply if item["kind"] == "Job")
    seen = resource(scheduling={"queueName": "queue"}) | {"status": begun.status.model_dump(mode="json", by_alias=True, exclude_none=True)}
    decision = decide(seen, Observed(**{**known, "children": {PREPARE: job}, **unknown}), CONFIG, NOW)
    assert not decision.delete
    assert decision.again is not None


def test_an_object_that_the_api_server_finds_invalid_ends_the_pipeline(demo):
    life = demo()
    life.decide(refusals={PREPARE: Refusal(reason="InvalidObject", message="spec: no")})
    assert (life.prepare["phase"], life.prepare["reason"]) == ("Failed", "InvalidObject")
    assert life.condition("Failed") == ("True", "InvalidObject")


@pytest.mark.parametrize(("count", "seconds"), [(1, 10), (2, 20), (3, 40), (20, 300)])
def test_what_is_refused_for_another_reason_is_tried_again_ever_more_rarely(demo, count, seconds):
    life = demo()
    decision = life.decide(refusals={PREPARE: Refusal(reason="QuotaExceeded", message="no", count=count)})
    assert (life.prepare["phase"], life.prepare["reason"], decision.again) == ("Queued", "QuotaExceeded", seconds)


def test_pods_of_a_former_job_of_that_name_are_not_the_stages(demo):
    life = demo()
    life.decide(children={PREPARE: life.job}, pods=[life.pod(owner="former-uid")])
    assert life.prepare["phase"] == "Queued"
    life.decide(children={PREPARE: life.job}, pods=[life.pod()])
    assert life.prepare["phase"] == "Running"


def test_only_what_is_this_pipelines_and_stays_is_deleted(demo):
    life = demo()
    life.resource["spec"]["suspend"] = True
    own = life.job["metadata"]
    assert [child.uid for child in life.decide(children={PREPARE: life.job}).delete] == ["job-uid"]
    going = {**life.job, "metadata": {**own, "deletionTimestamp": written(NOW)}}
    former = {**life.job, "metadata": {**own, "labels": {**own["labels"], names.PIPELINE_UID: "another"}}}
    assert life.decide(children={PREPARE: going}).delete == ()
    assert life.decide(children={PREPARE: former}).delete == ()


def test_a_name_that_is_still_taken_is_waited_for(demo):
    life = demo()
    going = {**life.job, "metadata": {**life.job["metadata"], "deletionTimestamp": written(NOW)}}
    decision = life.decide(children={PREPARE: going})
    assert decision.again == 2
    assert "Job" not in {item["kind"] for item in decision.apply}


@pytest.mark.parametrize(("phase", "suspended"), [("Pending", False), ("Running", False), ("Succeeded", True), ("Failed", True)])
def test_a_pipeline_is_suspended_once_no_pod_is_left_that_has_not_ended(demo, phase, suspended):
    life = demo()
    life.resource["spec"]["suspend"] = True
    life.decide(pods=[life.pod(phase)])
    assert life.condition("Suspended")[0] == str(suspended)
    assert life.resource["status"]["phase"] == ("Suspended" if suspended else "Suspending")


def test_a_pipeline_is_suspended_once_no_job_is_left_that_has_not_ended(demo):
    life = demo()
    life.resource["spec"]["suspend"] = True
    life.decide(children={PREPARE: life.job})
    assert life.condition("Suspended")[0] == "False"
    life.decide(children=life.failed())
    assert life.condition("Suspended")[0] == "True"


@pytest.mark.parametrize(
    "claim", [{**CLAIM, "metadata": {"name": "data", "deletionTimestamp": written(NOW)}}, {**CLAIM, "status": {"phase": "Lost"}}]
)
def test_no_pod_is_made_for_a_claim_that_goes_or_is_lost(resource, claim):
    decision = decide(resource(), Observed(claim=claim, apis=frozenset()), CONFIG, NOW)
    conditions = {c.type: (c.status, c.reason) for c in decision.status.conditions}
    assert conditions["StorageReady"] == conditions["Progressing"] == ("False", "ClaimLost")
    assert decision.apply == ()


@pytest.mark.parametrize(("before", "seconds"), [(0, 10), (1, 20), (19, 600)])
@pytest.mark.parametrize("counted", [True, False])
def test_an_attempt_comes_later_the_more_of_them_failed_that_way(demo, counted, before, seconds):
    life = demo(runPolicy={"backoffLimit": 100, "disruptionLimit": 100})
    own, other = ("countedFailures", "disruptions") if counted else ("disruptions", "countedFailures")
    life.prepare.update({own: before, other: 5})
    life.decide(children=life.failed(), pods=[life.pod("Failed", code=1 if counted else 143, disrupted=not counted)])
    assert (life.prepare["phase"], life.prepare[own], life.prepare[other]) == ("Retrying", before + 1, 5)
    assert life.prepare["nextAttemptTime"] == written(NOW + datetime.timedelta(seconds=seconds))


def test_pods_that_do_not_start_in_time_end_the_pipeline(demo):
    """The time of each attempt begins with it."""
    life = demo(runPolicy={"pendingDeadlineSeconds": 60})
    life.resource["status"]["startTime"] = written(NOW - datetime.timedelta(hours=1))
    assert life.decide(59).again == 1
    assert life.prepare["phase"] == "Queued"
    life.decide(60)
    assert (life.prepare["phase"], life.prepare["reason"]) == ("Failed", "PendingDeadlineExceeded")


def test_the_time_to_live_begins_with_the_end():
    life = Lifetime()
    life.begin(shards=1, rounds=0, nodes=1, done=0)
    life.reach_the_end()
    life.loop.close()
    resource, end = life.world.resource, datetime.datetime.fromisoformat(life.status()["completionTime"].replace("Z", "+00:00"))
    assert life.status()["startTime"] < life.status()["completionTime"]
    resource["spec"]["runPolicy"] = {"ttlSecondsAfterFinished": 100}
    resource["spec"]["serve"] = {}
    before, after = (decide(resource, Observed(), CONFIG, end + datetime.timedelta(seconds=s)) for s in (99, 100))
    assert (before.delete_self, before.again) == (False, 1)
    assert after.delete_self
