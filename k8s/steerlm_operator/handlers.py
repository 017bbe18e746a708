"""kopf: which objects are watched, what wakes a pipeline up, and the process's life. No decisions here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any

import aiohttp.web
import kopf
import prometheus_client

from nemo_steerlm.pipeline.manifest import API_VERSION
from steerlm_operator import names
from steerlm_operator.cluster import Cluster
from steerlm_operator.config import OperatorConfig
from steerlm_operator.controller import Controller, Name
from steerlm_operator.models import Object

logger = logging.getLogger(__name__)

GROUP, VERSION = API_VERSION.split("/")
PIPELINES = (GROUP, VERSION, "steerlmpipelines")
CHILDREN = {
    "Job": ("batch", "v1", "jobs"),
    "Deployment": ("apps", "v1", "deployments"),
    "Service": ("", "v1", "services"),
    "ConfigMap": ("", "v1", "configmaps"),
    "NetworkPolicy": ("networking.k8s.io", "v1", "networkpolicies"),
}
PODS = ("", "v1", "pods")
KEPT = {
    "ConfigMap": (),
    "Deployment": ("status", "replicas"),
    "Job": ("status", "suspend"),
    "NetworkPolicy": (),
    "Pod": ("status",),
    "Service": (),
}
"""What is kept of a watched object besides its metadata. A thousand pipelines' pod templates would not fit."""
KEPT_METADATA = (
    "name",
    "namespace",
    "uid",
    "labels",
    "annotations",
    "ownerReferences",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)


class IndexedCaches:
    """Reads kopf's indices, which are complete before the first handler runs."""

    def __init__(self) -> None:
        self.indices: Mapping[str, Any] = {}

    def pipelines(self) -> list[Name]:
        """All pipelines."""
        return list(self.indices.get("pipelines") or ())

    def pipeline(self, name: Name) -> Object | None:
        """One pipeline's resource."""
        found = self._stored("pipelines", name)
        return found[0] if found else None

    def children(self, name: Name) -> list[Object]:
        """A pipeline's objects but its pods."""
        return [child for kind in CHILDREN for child in self._stored(kind, name)]

    def pods(self, name: Name) -> list[Object]:
        """A pipeline's pods."""
        return self._stored("Pod", name)

    def _stored(self, index: str, name: Name) -> list[Object]:
        store = (self.indices.get(index) or {}).get(name)
        return list(store) if store else []


def registry(config: OperatorConfig) -> kopf.OperatorRegistry:
    """The handlers of one operator."""
    found = kopf.OperatorRegistry()
    caches = IndexedCaches()
    controller = Controller(config, caches)
    _watch_pipelines(found, caches, controller)
    for kind, resource in CHILDREN.items():
        _watch_children(found, kind, resource, controller)
    _watch_children(found, "Pod", PODS, controller)
    _live(found, config, controller)
    return found


def _watch_pipelines(found: kopf.OperatorRegistry, caches: IndexedCaches, controller: Controller) -> None:
    @kopf.index(*PIPELINES, id="pipelines", registry=found)
    def pipelines(body: kopf.Body, **_: Any) -> dict[Name, Object]:
        return {_name(body): {**body, "metadata": {k: v for k, v in body["metadata"].items() if k != "managedFields"}}}

    @kopf.on.event(*PIPELINES, registry=found)
    async def pipeline_changed(body: kopf.Body, **indices: Any) -> None:
        caches.indices = {key: indices[key] for key in ("pipelines", "Pod", *CHILDREN)}
        controller.enqueue(_name(body))


def _name(body: kopf.Body) -> Name:
    return body["metadata"]["namespace"], body["metadata"]["name"]


def _owner(body: kopf.Body) -> Name:
    return body["metadata"]["namespace"], body["metadata"]["labels"][names.PIPELINE]


def _watch_children(found: kopf.OperatorRegistry, kind: str, resource: tuple[str, str, str], controller: Controller) -> None:
    labels = {names.PIPELINE: kopf.PRESENT}

    @kopf.index(*resource, id=kind, labels=labels, registry=found)
    def children(body: kopf.Body, **_: Any) -> dict[Name, Object]:
        return {_owner(body): trimmed(kind, body)}

    @kopf.on.event(*resource, labels=labels, registry=found)
    async def child_changed(body: kopf.Body, **_: Any) -> None:
        controller.enqueue(_owner(body))


def trimmed(kind: str, body: Mapping[str, Any]) -> Object:
    """A watched object without what no decision reads."""
    metadata = {key: body["metadata"][key] for key in KEPT_METADATA if key in body["metadata"]}
    small: Object = {"kind": kind, "metadata": metadata}
    if "status" in KEPT[kind]:
        small["status"] = dict(body.get("status") or {})
    small["spec"] = {key: value for key, value in (body.get("spec") or {}).items() if key in KEPT[kind]}
    return small


def _live(found: kopf.OperatorRegistry, config: OperatorConfig, controller: Controller) -> None:
    """Start, credentials and end of the process."""
    stack = contextlib.AsyncExitStack()
    tasks: list[asyncio.Task[None]] = []

    @kopf.on.startup(registry=found)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False  # events are the controller's, at transitions only
        settings.scanning.disabled = True  # no right to list CRDs and namespaces is needed
        settings.watching.label_selectors = kopf_selectors(settings)
        runner = aiohttp.web.AppRunner(_pages(controller), access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        host, _colon, port = config.address.rpartition(":")
        await aiohttp.web.TCPSite(runner, host, int(port)).start()
        logger.info("health and metrics on %s", runner.addresses[0])
        running = [controller.resync(), controller.follow(), *(controller.work() for _ in range(config.workers))]
        tasks.extend(asyncio.create_task(coroutine) for coroutine in running)

    @kopf.on.login(registry=found)
    async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        connection = kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)
        if connection is None:
            return None
        if controller.cluster is None:
            controller.cluster = await stack.enter_async_context(Cluster(connection, lambda: kopf.login_with_service_account(**kwargs)))
        else:
            controller.cluster.renew(connection)
        return connection

    @kopf.on.cleanup(registry=found)
    async def stop(**_: Any) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await stack.aclose()


def kopf_selectors(settings: kopf.OperatorSettings) -> Any:
    """Ask the API server for labelled objects only, not for every Job and pod of the cluster."""
    selectors = settings.watching.label_selectors
    for group, _version, plural in (*CHILDREN.values(), PODS):
        selectors[group, plural] = names.PIPELINE
    return selectors


def _pages(controller: Controller) -> aiohttp.web.Application:
    async def healthz(_: aiohttp.web.Request) -> aiohttp.web.Response:
        problem = controller.problem()
        return aiohttp.web.Response(status=500 if problem else 200, text=f"{problem or 'ok'}\n")

    async def readyz(_: aiohttp.web.Request) -> aiohttp.web.Response:
        ready = controller.cluster is not None and controller.apis is not None
        return aiohttp.web.Response(status=200 if ready else 503, text="ok\n" if ready else "not connected to the API server yet\n")

    async def show_metrics(_: aiohttp.web.Request) -> aiohttp.web.Response:
        body = prometheus_client.generate_latest()
        return aiohttp.web.Response(body=body, headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST})

    application = aiohttp.web.Application()
    application.add_routes(
        [aiohttp.web.get("/healthz", healthz), aiohttp.web.get("/readyz", readyz), aiohttp.web.get("/metrics", show_metrics)]
    )
    return application
