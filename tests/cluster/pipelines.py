"""Pipelines in one namespace as a test makes, changes and watches them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes
import yaml

GROUP = {"group": "steerlm.dev", "version": "v1alpha1", "plural": "steerlmpipelines"}
DEADLINE = 90
SPEC = {
    "attributes": {"preset": "helpsteer"},
    "data": {"records": {"train": "t.jsonl", "validation": "v.jsonl"}},
    "model": {"base": "base"},
    "trainValue": {"globalBatchSize": 8},
    "trainSteer": {"globalBatchSize": 8},
    "annotate": {"shards": 1},
}
TWO_NODES = {"parallel": {"nodes": 2}, "globalBatchSize": 8}


class Status:
    """A pipeline's status, read."""

    def __init__(self, resource: dict[str, Any]) -> None:
        self.resource = resource
        self.status = resource.get("status") or {}
        self.phase = self.status.get("phase")
        self.conditions = {c["type"]: c for c in self.status.get("conditions", [])}
        self.stages = {s["name"]: s for s in self.status.get("stages", [])}

    def holds(self, kind: str) -> bool:
        """Whether a condition is True."""
        return bool(self.conditions.get(kind, {}).get("status") == "True")

    def reason(self, kind: str) -> str | None:
        """A condition's reason."""
        found: str | None = self.conditions.get(kind, {}).get("reason")
        return found

    def message(self, kind: str) -> str:
        """A condition's message."""
        return str(self.conditions.get(kind, {}).get("message", ""))

    @property
    def ended(self) -> bool:
        """Whether it is complete or failed."""
        return self.holds("Complete") or self.holds("Failed")

    def attempts(self) -> dict[str, int]:
        """How often each stage was started."""
        return {name: stage["attempt"] for name, stage in self.stages.items()}


class Namespace:
    """One namespace of an API server, seen by an administrator."""

    def __init__(self, kubeconfig: Path, name: str) -> None:
        self.name = name
        client = kubernetes.config.new_client_from_config(str(kubeconfig))
        self.core = kubernetes.client.CoreV1Api(client)
        self.batch = kubernetes.client.BatchV1Api(client)
        self.apps = kubernetes.client.AppsV1Api(client)
        self.networking = kubernetes.client.NetworkingV1Api(client)
        self.custom = kubernetes.client.CustomObjectsApi(client)

    def create(self, name: str = "p", **spec: Any) -> dict[str, Any]:
        """Make a pipeline; keywords replace fields of the spec."""
        body = {"apiVersion": "steerlm.dev/v1alpha1", "kind": "SteerLMPipeline", "metadata": {"name": name}, "spec": SPEC | spec}
        return self.custom.create_namespaced_custom_object(namespace=self.name, body=body, field_validation="Strict", **GROUP)

    def edit(self, name: str = "p", **spec: Any) -> None:
        """Change fields of a pipeline's spec."""
        self.custom.patch_namespaced_custom_object(namespace=self.name, name=name, body={"spec": spec}, **GROUP)

    def get(self, name: str = "p") -> dict[str, Any]:
        """The resource."""
        return self.custom.get_namespaced_custom_object(namespace=self.name, name=name, **GROUP)

    def delete(self, name: str = "p") -> None:
        """Delete a pipeline."""
        self.custom.delete_namespaced_custom_object(namespace=self.name, name=name, **GROUP)

    def until(self, predicate: Callable[[Status], object], name: str = "p", seconds: float = DEADLINE) -> Status:
        """The first state of the pipeline for which ``predicate`` holds, from a watch."""
        last: dict[str, Any] = {}
        for kind, resource in self._events(name, seconds):
            last = resource
            if kind != "DELETED" and predicate(Status(resource)):
                return Status(resource)
        raise AssertionError(f"never came: {yaml.safe_dump(last.get('status'))}")

    def until_deleted(self, name: str = "p", seconds: float = DEADLINE) -> None:
        """Wait until the pipeline is gone."""
        for kind, _ in self._events(name, seconds):
            if kind in ("DELETED", "ABSENT"):
                return
        raise AssertionError(f"{name} is still there")

    def _events(self, name: str, seconds: float) -> Any:
        end = time.monotonic() + seconds
        listing = {"namespace": self.name, "field_selector": f"metadata.name={name}", **GROUP}
        while time.monotonic() < end:
            try:
                found = self.custom.list_namespaced_custom_object(**listing)
                if not found["items"]:
                    yield "ABSENT", {}
                yield from (("ADDED", item) for item in found["items"])
                stream = kubernetes.watch.Watch().stream(
                    self.custom.list_namespaced_custom_object,
                    resource_version=found["metadata"]["resourceVersion"],
                    timeout_seconds=max(1, int(end - time.monotonic())),
                    **listing,
                )
                yield from ((event["type"], event["object"]) for event in stream)
            except (OSError, kubernetes.client.ApiException, *_CUT) as error:
                if getattr(error, "status", 0) not in (0, 410, 429, 500, 503):
                    raise

    def until_gone(self, listing: Callable[..., Any], seconds: float = DEADLINE, **selector: Any) -> None:
        """Wait until a listing is empty."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = listing(self.name, **selector)
            if not found.items:
                return
            watch = kubernetes.watch.Watch()
            for _ in watch.stream(listing, self.name, resource_version=found.metadata.resource_version, timeout_seconds=5, **selector):
                watch.stop()
        raise AssertionError([item.metadata.name for item in found.items])

    def until_listed(
        self, listing: Callable[..., Any], predicate: Callable[[Any], object], seconds: float = DEADLINE, **selector: Any
    ) -> Any:
        """The first object of a listing for which ``predicate`` holds, from a watch."""
        for event in kubernetes.watch.Watch().stream(listing, self.name, resource_version="0", timeout_seconds=int(seconds), **selector):
            if event["type"] != "DELETED" and predicate(event["object"]):
                return event["object"]
        raise AssertionError("never came")

    def scale(self, replicas: int | None = None, name: str = "p") -> dict[str, Any]:
        """The scale subresource, set first where a number is given."""
        place = {"namespace": self.name, "name": name, **GROUP}
        if replicas is not None:
            self.custom.patch_namespaced_custom_object_scale(body={"spec": {"replicas": replicas}}, **place)
        found: dict[str, Any] = self.custom.get_namespaced_custom_object_scale(**place)
        return found

    def labelled(self, selector: str) -> set[str]:
        """Names of the pods that a label selector finds."""
        return {pod.metadata.name for pod in self.core.list_namespaced_pod(self.name, label_selector=selector).items}

    def selected(self, selector: Any) -> set[str]:
        """Names of the pods that a NetworkPolicy's selector finds."""
        return self.labelled(",".join(f"{key}={value}" for key, value in (selector.match_labels or {}).items()))

    def jobs(self) -> dict[str, Any]:
        """Jobs by name."""
        return {job.metadata.name: job for job in self.batch.list_namespaced_job(self.name).items}

    def pods(self, job: str) -> list[Any]:
        """The pods of a Job."""
        found: list[Any] = self.core.list_namespaced_pod(self.name, label_selector=f"batch.kubernetes.io/job-name={job}").items
        return found

    def deployments(self) -> dict[str, Any]:
        """Deployments by name."""
        return {item.metadata.name: item for item in self.apps.list_namespaced_deployment(self.name).items}

    def events(self) -> list[str]:
        """Reasons of the events about pipelines."""
        found = self.core.list_namespaced_event(self.name, field_selector="involvedObject.kind=SteerLMPipeline").items
        return [event.reason for event in found]


_CUT = (kubernetes.client.rest.urllib3.exceptions.HTTPError, json.JSONDecodeError)
"""What the client makes of a server that goes away in the middle of an answer."""
