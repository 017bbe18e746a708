"""A small model of the API server, the Job controller and the kubelet, kept to what their documentation promises."""

from __future__ import annotations

import copy
import datetime
import itertools
import json
import re
import typing
from pathlib import Path

from steerlm_operator import names
from steerlm_operator.cluster import ApiError
from steerlm_operator.draft import finished

from nemo_steerlm.pipeline import cluster_status

NAME = ("team", "p")
README = Path(__file__).parents[2] / "k8s/README.md"


def arrows():
    """Every arrow between two phases in the diagram of ``k8s/README.md``; one at a box of phases is one at each of them."""
    diagram = README.read_text(encoding="utf-8").partition("stateDiagram-v2")[2].partition("```")[0]
    boxes = {
        box: set(re.findall(r"\w+(?= -->)|(?<=--> )\w+", inside))
        for box, inside in re.findall(r"state (\w+) \{(.*?)\}", diagram, re.DOTALL)
    }
    found = {(a, b) for a, b in re.findall(r"(\w+) --> (\w+)", diagram)}
    return {(a, b) for x, y in found for a in boxes.get(x, {x}) for b in boxes.get(y, {y})}


ARROWS = arrows()
assert {phase for arrow in ARROWS for phase in arrow} == set(typing.get_args(cluster_status.Phase))


class Crash(BaseException):
    """kill -9."""


class World:
    """The API server and the controllers of a cluster. Deletion is immediate; uids and resource versions never come back."""

    def __init__(self, resource):
        self.now = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
        self.ids = itertools.count(1)
        self.resource = self._stamp(resource)
        self.children = {}
        self.pods = {}
        self.claim = None
        self.said_of_claim = ""
        self.refusal_of_claim = ""
        self.said_by_queue = {}
        self.events = []
        self.writes = 0
        self.crash_after = None
        self.counted_failures = {}
        self.created = []

    def _stamp(self, item):
        item["metadata"]["resourceVersion"] = str(next(self.ids))
        item["metadata"].setdefault("uid", f"uid-{next(self.ids)}")
        return item

    def _wrote(self):
        self.writes += 1
        if self.crash_after is not None:
            self.crash_after -= 1
            if self.crash_after < 0:
                raise Crash

    # What the controller calls.

    async def get(self, api_version, kind, namespace, name):
        if kind == "SteerLMPipeline":
            return copy.deepcopy(self.resource)
        return copy.deepcopy(self.claim)

    async def write_status(self, resource, status):
        if resource["metadata"]["resourceVersion"] != self.resource["metadata"]["resourceVersion"]:
            raise ApiError(409, "the object has been modified")
        assert json.loads(json.dumps(status)) == status
        before = self.resource.get("status", {}).get("phase", "Pending")
        assert before == status["phase"] or (before, status["phase"]) in ARROWS, "the README's diagram has no such arrow"
        self.resource = self._stamp({**copy.deepcopy(self.resource), "status": copy.deepcopy(status)})
        self._wrote()
        return copy.deepcopy(self.resource)

    async def post_event(self, resource, kind, reason, message):
        self.events.append(reason)
        self._wrote()

    async def apply(self, wanted, *, force):
        key = (wanted["kind"], wanted["metadata"]["name"])
        wanted = copy.deepcopy(wanted)
        if key[0] == "PersistentVolumeClaim":
            if self.claim and self.refusal_of_claim:
                raise ApiError(403, self.refusal_of_claim)
            status = self.claim["status"] if self.claim else {"phase": "Bound"}
            self.claim = self._stamp({**wanted, "status": status})
        elif key not in self.children:
            wanted["metadata"]["annotations"] = wanted["metadata"].get("annotations", {})
            self.children[key] = self._stamp({**wanted, "status": {}})
            self.created.append(key)
        elif key[0] == "Job":
            assert self.children[key]["spec"] == wanted["spec"], "a Job's template is immutable"
        else:
            found = self.children[key]
            metadata = copy.deepcopy(found["metadata"])
            for name, value in wanted["metadata"].items():
                metadata[name] = {**metadata.get(name, {}), **value} if isinstance(value, dict) else value
            made = {**found, **wanted, "metadata": metadata, "status": found["status"]}
            if "spec" in found:
                made["spec"] = {**found["spec"], **wanted["spec"]}
                metadata["generation"] = metadata.get("generation", 1) + (made["spec"] != found["spec"])
            self.children[key] = self._stamp(made)
        self._wrote()

    async def delete(self, api_version, kind, namespace, name, uid):
        found = self.children.get((kind, name))
        if found and found["metadata"]["uid"] == uid:
            self._remove((kind, name))
        self._wrote()

    async def last_event(self, namespace, kind, name, *reasons, prefix=False):
        if kind == "Workload":
            return self.said_by_queue.get(name, "")
        return self.said_of_claim if kind == "PersistentVolumeClaim" else ""

    def _remove(self, key):
        gone = self.children.pop(key)
        self.pods = {n: p for n, p in self.pods.items() if p["metadata"]["ownerReferences"][0]["uid"] != gone["metadata"]["uid"]}

    # What the rest of the cluster does.

    def jobs(self, *, active=True):
        return [c for (kind, _), c in self.children.items() if kind == "Job" and not (active and finished(c))]

    def deployments(self):
        return [c for (kind, _), c in self.children.items() if kind == "Deployment"]

    def start_pods(self, job):
        for index in range(job["spec"]["completions"]):
            name = f"{job['metadata']['name']}-{index}"
            owner = {"kind": "Job", "uid": job["metadata"]["uid"], "name": job["metadata"]["name"]}
            labels = {**job["metadata"]["labels"], names.JOB_NAME: job["metadata"]["name"]}
            metadata = {"name": name, "labels": labels, "annotations": {names.COMPLETION_INDEX: str(index)}, "ownerReferences": [owner]}
            self.pods[name] = self._stamp({"kind": "Pod", "metadata": metadata, "status": {"phase": "Running"}})

    def end_pods(self, job, code, *, reason="Error", message="", disrupted=False):
        for pod in self.pods.values():
            if pod["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]:
                ended = {"exitCode": code, "reason": "Completed" if code == 0 else reason, "message": message}
                pod["status"] = {"phase": "Succeeded" if code == 0 else "Failed", "containerStatuses": [{"state": {"terminated": ended}}]}
                if disrupted:
                    pod["status"]["conditions"] = [{"type": "DisruptionTarget", "status": "True", "message": "preempted"}]
                self._stamp(pod)

    def delete_pods(self, job, only=None):
        """Somebody asked for it a moment ago, and they had no time to end."""
        for name, pod in self.pods.items():
            if pod["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"] and only in (None, name):
                pod["metadata"] |= {"deletionTimestamp": self.now.strftime("%Y-%m-%dT%H:%M:%SZ"), "deletionGracePeriodSeconds": 0}
                self._stamp(pod)

    def end_job(self, job, kind, reason="", message=""):
        time = self.now.strftime("%Y-%m-%dT%H:%M:%SZ")
        job["status"] = {"conditions": [{"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": time}]}
        if job["spec"]["completions"] > 1 and kind == "Complete":
            job["status"]["completedIndexes"] = f"0-{job['spec']['completions'] - 1}"
        self._stamp(job)


class Caches:
    """Watch caches: each kind as old as it pleases, never newer than the world."""

    def __init__(self, world):
        self.world = world
        self.resource, self.kinds, self.pod_list = None, {}, []
        self.sync()

    def sync(self, kinds=("resource", "Job", "Deployment", "Service", "ConfigMap", "NetworkPolicy", "PodDisruptionBudget", "Pod")):
        for kind in kinds:
            if kind == "resource":
                self.resource = copy.deepcopy(self.world.resource)
            elif kind == "Pod":
                self.pod_list = copy.deepcopy(list(self.world.pods.values()))
            else:
                self.kinds[kind] = [copy.deepcopy(c) for (k, _), c in self.world.children.items() if k == kind]

    def pipelines(self):
        return [NAME]

    def pipeline(self, name):
        return copy.deepcopy(self.resource)

    def children(self, name):
        return copy.deepcopy([child for kind in self.kinds.values() for child in kind])

    def pods(self, name):
        return copy.deepcopy(self.pod_list)
