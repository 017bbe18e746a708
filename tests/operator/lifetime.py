"""A pipeline's lifetime: what the operator, the cluster and people may do to it at any time, and what always holds.

The real controller and the real ``decide`` work on the cluster of ``world.py``. Nothing of the operator is replaced.
"""

from __future__ import annotations

import asyncio
import copy
import datetime
import json

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from steerlm_operator import names
from steerlm_operator.config import OperatorConfig
from steerlm_operator.controller import Controller

from tests.operator.world import NAME, Caches, Crash, World

CODES = {
    "exit 1": 1,
    "exit 65": 65,
    "exit 69": 69,
    "oom": 137,
    "terminated": 143,
    "disrupted": 143,
    "deleted": 137,
    "deleted and gone": 137,
    "pods lost": 1,
}
"""How a Job may fail, and the exit code that its pods have then."""


def resource(shards=2, rounds=0, nodes=1, backoff_limit=1):
    spec = {
        "attributes": {"preset": "helpsteer"},
        "data": {"records": {"train": "t.jsonl", "validation": "v.jsonl"}},
        "model": {"base": "base"},
        "trainValue": {"parallel": {"nodes": nodes}, "globalBatchSize": 8},
        "trainSteer": {"globalBatchSize": 8},
        "annotate": {"shards": shards},
        "bootstrap": {"rounds": rounds, "requireAny": True},
        "serve": {"enabled": True, "insecure": True},
        "runPolicy": {"backoffLimit": backoff_limit},
    }
    return {
        "apiVersion": "steerlm.dev/v1alpha1",
        "kind": "SteerLMPipeline",
        "metadata": {"name": NAME[1], "namespace": NAME[0], "generation": 1},
        "spec": spec,
    }


class Lifetime(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.terminal = None
        self.done = {}
        self.attempts = {}
        self.loop = asyncio.new_event_loop()

    def teardown(self):
        try:
            if hasattr(self, "world"):
                self.reach_the_end()
        finally:
            self.loop.close()

    @initialize(shards=st.integers(1, 3), rounds=st.integers(0, 1), nodes=st.integers(1, 2), done=st.integers(0, 5))
    def begin(self, shards, rounds, nodes, done):
        self.world = World(resource(shards, rounds, nodes))
        self.caches = Caches(self.world)
        self.start_operator()
        for _ in range(done):
            self.settle()
            self.help()

    def start_operator(self):
        self.controller = Controller(OperatorConfig(retrySeconds=1), self.caches, clock=lambda: self.world.now)
        self.controller.cluster = self.world
        self.controller.apis = frozenset()

    def status(self):
        return self.world.resource.get("status", {})

    def conditions(self):
        return {c["type"]: c["status"] for c in self.status().get("conditions", [])}

    def look_once(self):
        async def go():
            await self.controller._look(NAME)
            self.controller.queue.cancel_timer(NAME)

        self.loop.run_until_complete(go())

    def evaluate(self, metrics):
        """Go on to the stage evaluate, which ends well with these metrics."""
        for _ in range(20):
            self.settle()
            if self.status()["currentStage"] == "evaluate" and self.world.jobs():
                break
            self.help()
        (job,) = self.world.jobs()
        self.world.start_pods(job)
        self.world.end_pods(job, 0, message=json.dumps({"cached": False, "inputHash": "b" * 64, "metrics": metrics}))
        self.world.end_job(job, "Complete")
        self.settle()

    def settle(self):
        """Everything catches up: caches, and the operator until it has nothing more to do."""
        self.world.crash_after = None
        for _ in range(30):
            self.caches.sync()
            before = self.world.writes
            self.look_once()
            if self.world.writes == before:
                return
        raise AssertionError(f"never quiet: {json.dumps(self.status(), indent=1)}")

    # The operator.

    @rule(crash=st.none() | st.integers(0, 6))
    def look(self, crash):
        self.world.crash_after = crash
        try:
            self.look_once()
        except Crash:
            # A new process lists everything first.
            self.caches.sync()
            self.start_operator()
        self.world.crash_after = None

    @rule()
    def look_twice_from_the_same_caches(self):
        self.look_once()
        self.look_once()

    @rule(kinds=st.sets(st.sampled_from(["resource", "Job", "Deployment", "Service", "Pod"]), min_size=1))
    def some_caches_catch_up(self, kinds):
        self.caches.sync(sorted(kinds))

    @rule()
    def all_is_quiet(self):
        self.settle()
        self.check_quiet()

    # The cluster.

    @precondition(lambda self: self.world.jobs())
    @rule(data=st.data())
    def pods_run(self, data):
        self.world.start_pods(data.draw(st.sampled_from(self.world.jobs())))

    @precondition(lambda self: self.world.jobs())
    @rule(data=st.data(), cached=st.booleans(), pods_first=st.booleans())
    def job_succeeds(self, data, cached, pods_first):
        job = data.draw(st.sampled_from(self.world.jobs()))
        self.world.start_pods(job)
        self.world.end_pods(job, 0, message=json.dumps({"cached": cached, "inputHash": "a" * 64, "metrics": {"loss": 1.5}}))
        if pods_first:
            self.caches.sync(["Pod"])
        self.world.end_job(job, "Complete")

    @precondition(lambda self: self.world.jobs())
    @rule(data=st.data(), how=st.sampled_from(sorted(CODES)))
    def job_fails(self, data, how):
        job = data.draw(st.sampled_from(self.world.jobs()))
        self.world.start_pods(job)
        self.fail_job(job, how)

    def fail_job(self, job, how):
        code, name = CODES[how], job["metadata"]["name"]
        self.world.end_pods(job, code, reason="OOMKilled" if how == "oom" else "Error", message="it said so", disrupted=how == "disrupted")
        sharded = job["spec"]["completions"] > 1 and "backoffLimitPerIndex" in job["spec"]
        message = (
            "has condition DisruptionTarget matching FailJob" if how == "disrupted" else f"failed with exit code {code} matching FailJob"
        )
        if sharded:
            self.world.end_job(job, "Failed", "FailedIndexes", "Job has failed indexes")
        elif how.startswith("deleted"):
            self.world.end_job(job, "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
        else:
            self.world.end_job(job, "Failed", "PodFailurePolicy", f"Container main for pod team/{name}-0 {message}")
        if how == "deleted":
            self.world.delete_pods(job)
        if how in ("pods lost", "deleted and gone"):
            self.world.pods = {n: p for n, p in self.world.pods.items() if not n.startswith(f"{name}-")}
        if sharded or how not in ("terminated", "disrupted", "deleted", "deleted and gone"):
            stage = job["metadata"]["labels"][names.STAGE]
            self.world.counted_failures[stage] = self.world.counted_failures.get(stage, 0) + 1

    @precondition(lambda self: any(job["spec"]["completions"] > 1 and "backoffLimit" in job["spec"] for job in self.world.jobs()))
    @rule()
    def somebody_deletes_a_rank(self):
        """The operator sees it go; the other rank fails of it, and only that one is there to be asked in the end."""
        job = next(job for job in self.world.jobs() if job["spec"]["completions"] > 1 and "backoffLimit" in job["spec"])
        self.world.start_pods(job)
        gone = f"{job['metadata']['name']}-1"
        self.world.delete_pods(job, gone)
        self.settle()
        if gone not in self.world.pods:  # it was not wanted anyhow
            return
        del self.world.pods[gone]
        self.settle()
        self.world.end_pods(job, 1)
        self.world.end_job(job, "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")

    @precondition(lambda self: self.world.jobs(active=False))
    @rule(data=st.data())
    def somebody_deletes_a_job(self, data):
        """Its time to live is over, or a person did it: a Job may vanish in any state."""
        job = data.draw(st.sampled_from(self.world.jobs(active=False)))
        self.world._remove(("Job", job["metadata"]["name"]))

    @precondition(lambda self: self.world.deployments())
    @rule(data=st.data(), ready=st.integers(0, 1))
    def servers_change(self, data, ready):
        deployment = data.draw(st.sampled_from(self.world.deployments()))
        deployment["status"] = {"readyReplicas": ready}
        self.world._stamp(deployment)

    @precondition(lambda self: self.world.deployments())
    @rule(data=st.data())
    def servers_never_start(self, data):
        deployment = data.draw(st.sampled_from(self.world.deployments()))
        deployment["status"] = {"conditions": [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]}
        self.world._stamp(deployment)
        stage = deployment["metadata"]["labels"].get(names.STAGE)
        self.world.counted_failures[stage] = self.world.counted_failures.get(stage, 0) + 1

    @rule(seconds=st.integers(1, 1000))
    def time_passes(self, seconds):
        self.world.now += datetime.timedelta(seconds=seconds)

    # People.

    def edit(self, **spec):
        new = copy.deepcopy(self.world.resource)
        new["spec"].update(spec)
        new["metadata"]["generation"] += 1
        self.world.resource = self.world._stamp(new)

    @rule(suspend=st.booleans())
    def somebody_suspends_or_resumes(self, suspend):
        self.edit(suspend=suspend)

    @rule(stage=st.none() | st.sampled_from(["prepare", "annotate", "evaluate"]))
    def somebody_asks_to_restart(self, stage):
        self.ask_to_restart(stage)

    def ask_to_restart(self, stage):
        restart = {"token": f"t{next(self.world.ids)}"} | ({"fromStage": stage} if stage else {})
        self.edit(restart=restart)
        # From now on, ended things may start again.
        self.terminal, self.done = None, {}
        self.restarting = True

    # What always holds.

    @invariant()
    def the_end_stays_the_end(self):
        conditions = self.conditions() if hasattr(self, "world") else {}
        assert not (conditions.get("Complete") == "True" and conditions.get("Failed") == "True")
        ended = next((kind for kind in ("Complete", "Failed") if conditions.get(kind) == "True"), None)
        asked = hasattr(self, "world") and self.asked_to_restart()
        if self.terminal and not asked:
            assert ended == self.terminal
        self.terminal = None if asked else ended

    def asked_to_restart(self):
        token = self.world.resource["spec"].get("restart", {}).get("token")
        return token != self.status().get("observedRestartToken")

    @invariant()
    def attempts_grow_and_done_stages_stay_done(self):
        if not hasattr(self, "world"):
            return
        for stage in self.status().get("stages", []):
            name = stage["name"]
            assert stage["attempt"] >= self.attempts.get(name, 0)
            self.attempts[name] = stage["attempt"]
            assert stage["countedFailures"] <= min(stage["attempt"], self.world.counted_failures.get(name, 0))
            if not self.asked_to_restart():
                assert stage["phase"] in ("Succeeded", "CacheHit") or not self.done.get(name)
                self.done[name] = stage["phase"] in ("Succeeded", "CacheHit")

    @invariant()
    def names_tell_stage_and_attempt(self):
        if not hasattr(self, "world"):
            return
        for job in self.world.jobs(active=False):
            labels = job["metadata"]["labels"]
            assert labels[names.STAGE] in job["metadata"]["name"]
            assert job["metadata"]["name"].endswith(f"-{labels[names.ATTEMPT]}")
            assert int(labels[names.ATTEMPT]) <= self.attempts.get(labels[names.STAGE], 0), "a Job whose attempt no status knows"
            assert job["metadata"]["ownerReferences"][0]["uid"] == self.world.resource["metadata"]["uid"]

    def check_quiet(self):
        conditions, status = self.conditions(), self.status()
        jobs = self.world.jobs()
        servers = [d for d in self.world.deployments() if d["metadata"]["labels"][names.COMPONENT] == names.SERVER]
        assert len(jobs) <= 1, [job["metadata"]["name"] for job in jobs]
        stages = {stage["name"]: stage for stage in status["stages"]}
        for item in jobs + servers:
            labels = item["metadata"]["labels"]
            assert labels[names.STAGE] == status["currentStage"]
            assert labels[names.ATTEMPT] == str(stages[labels[names.STAGE]]["attempt"])
            assert stages[labels[names.STAGE]]["phase"] in ("Queued", "Running")
        if servers:
            assert stages[status["currentStage"]]["step"] == "Work"
        ended = conditions.get("Complete") == "True" or conditions.get("Failed") == "True"
        suspended = self.world.resource["spec"].get("suspend")
        if ended or suspended:
            assert not jobs
            assert not servers
        serving = [d for d in self.world.deployments() if d["metadata"]["labels"][names.COMPONENT] == names.SERVE]
        assert len(serving) == (conditions.get("Complete") == "True" and not suspended)
        if suspended and not ended:
            assert conditions["Suspended"] == "True"
            assert status["phase"] == "Suspended"
        if not suspended and not ended:
            assert status["phase"] in ("Running", "Retrying")

    def help(self):
        for deployment in self.world.deployments():
            deployment["status"] = {"readyReplicas": 1}
        for job in self.world.jobs():
            self.world.start_pods(job)
            self.world.end_pods(job, 0, message=json.dumps({"cached": False, "inputHash": "b" * 64, "metrics": {}}))
            self.world.end_job(job, "Complete")

    def reach_the_end(self):
        """With a helpful cluster from here on, every pipeline ends; a failed one does after a restart."""
        self.edit(suspend=False)
        self.settle()
        if self.conditions().get("Failed") == "True":
            self.ask_to_restart(None)
        for _ in range(120):
            self.settle()
            self.check_quiet()
            if self.conditions().get("Complete") == "True":
                return
            self.help()
            self.world.now += datetime.timedelta(seconds=700)
            if self.conditions().get("Failed") == "True":
                self.ask_to_restart(None)
        raise AssertionError(json.dumps(self.status(), indent=1))
