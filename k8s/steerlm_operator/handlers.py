"""kopf: the process's life and its credentials. No decisions here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from typing import Any

import aiohttp.web
import kopf
import prometheus_client

from nemo_steerlm.core import environment
from steerlm_operator.cluster import Cluster
from steerlm_operator.config import OperatorConfig
from steerlm_operator.controller import Controller
from steerlm_operator.election import Election
from steerlm_operator.watches import Watches

logger = logging.getLogger(__name__)


def registry(config: OperatorConfig) -> kopf.OperatorRegistry:
    """The handlers of one operator."""
    found = kopf.OperatorRegistry()
    watches = Watches(config.namespaces, selector=config.selector)
    controller = Controller(config, watches)
    watches.changed = controller.queue.add
    _live(found, config, controller, watches)
    return found


def _live(found: kopf.OperatorRegistry, config: OperatorConfig, controller: Controller, watches: Watches) -> None:
    """Start, credentials and end of the process."""
    stack = contextlib.AsyncExitStack()
    tasks: list[asyncio.Task[None]] = []
    clusters: list[Cluster] = []

    @kopf.on.startup(registry=found)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False  # events are the controller's, at transitions only
        settings.scanning.disabled = True  # no right to list CRDs and namespaces is needed
        runner = aiohttp.web.AppRunner(_pages(controller), access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        host, _colon, port = config.address.rpartition(":")
        await aiohttp.web.TCPSite(runner, host, int(port)).start()
        logger.info("health and metrics on %s", runner.addresses[0])

    async def run(cluster: Cluster) -> None:
        """Work, once this process leads and it is known what there is."""
        if lease := os.environ.get(environment.OPERATOR_LEASE):
            controller.standby = True
            namespace, _slash, name = lease.partition("/")
            election = Election(cluster, namespace, name, socket.gethostname())
            await election.win()
            stack.push_async_callback(election.release)
            tasks.append(asyncio.create_task(_leave_when_lost(election)))
        controller.begin(cluster)
        tasks.append(asyncio.create_task(watches.follow(cluster)))
        await watches.synced.wait()
        await controller.discover()  # before the first pipeline is looked at, which may need one of its APIs
        running = [controller.resync(), controller.follow(), *(controller.work() for _ in range(config.workers))]
        tasks.extend(asyncio.create_task(coroutine) for coroutine in running)

    @kopf.on.login(registry=found)
    async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        connection = _log_in(**kwargs)
        if connection and clusters:
            clusters[0].renew(connection)
        elif connection:
            cluster = await stack.enter_async_context(Cluster(connection, lambda: _log_in(**kwargs)))
            clusters.append(cluster)
            tasks.append(asyncio.create_task(run(cluster)))
        return connection

    @kopf.on.cleanup(registry=found)
    async def stop(**_: Any) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await stack.aclose()


async def _leave_when_lost(election: Election) -> None:
    """End at once, whatever is being done: another process may lead by now."""
    await election.hold()
    os._exit(1)


def _log_in(**kwargs: Any) -> kopf.ConnectionInfo | None:
    return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)


def _pages(controller: Controller) -> aiohttp.web.Application:
    async def healthz(_: aiohttp.web.Request) -> aiohttp.web.Response:
        problem = controller.problem()
        return aiohttp.web.Response(status=500 if problem else 200, text=f"{problem or 'ok'}\n")

    async def readyz(_: aiohttp.web.Request) -> aiohttp.web.Response:
        ready = controller.standby or (controller.cluster is not None and controller.apis is not None)
        text = "standing by\n" if controller.standby else "ok\n" if ready else "not connected to the API server yet\n"
        return aiohttp.web.Response(status=200 if ready else 503, text=text)

    async def show_metrics(_: aiohttp.web.Request) -> aiohttp.web.Response:
        body = prometheus_client.generate_latest()
        return aiohttp.web.Response(body=body, headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST})

    application = aiohttp.web.Application()
    application.add_routes(
        [aiohttp.web.get("/healthz", healthz), aiohttp.web.get("/readyz", readyz), aiohttp.web.get("/metrics", show_metrics)]
    )
    return application
