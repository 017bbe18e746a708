"""Of several operators one acts: the one that holds a Lease. The protocol is that of client-go's leader election.

A Lease names its holder, and when that last renewed it, by the holder's clock. Whoever waits compares no clocks: it takes the Lease only
after it has itself seen no change of it for ``LEASE_SECONDS``. A holder that has not renewed it for ``RENEW_SECONDS``, which is less, ends.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from steerlm_operator.cluster import ApiError
from steerlm_operator.models import Object

logger = logging.getLogger(__name__)

LEASE_SECONDS = 15.0
RENEW_SECONDS = 10.0
RETRY_SECONDS = 2.0
API_VERSION = "coordination.k8s.io/v1"


class Leases(Protocol):
    """What an election asks of the API server."""

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        """One object, or None. Raises ApiError."""

    async def create(self, wanted: Object) -> Object:
        """Make an object. Raises ApiError, 409 where it is there."""

    async def replace(self, wanted: Object) -> Object:
        """Write over the very version that was read. Raises ApiError, 409 where it has changed since."""


class Election:
    """One candidate."""

    def __init__(
        self,
        cluster: Leases,
        namespace: str,
        name: str,
        identity: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """``identity`` is this process's name among the candidates; ``clock`` and ``sleep`` count seconds."""
        self._cluster, self._place, self._identity = cluster, (namespace, name), identity
        self._clock, self._sleep = clock, sleep
        self._seen: tuple[str, float] | None = None
        """The version of the Lease that was seen last, and when it was seen first."""

    async def win(self) -> None:
        """Return once this candidate holds the Lease."""
        said = ""
        while True:
            try:
                holder = await self._try()
            except ApiError as error:
                holder = f"nobody knows: {error}"
            if holder is None:
                logger.info("%s leads", self._identity)
                return
            if holder != said:
                logger.info("waiting; the leader is %s", holder)
                said = holder
            await self._sleep(RETRY_SECONDS)

    async def hold(self) -> None:
        """Renew the Lease for as long as that works; return when it is lost, or may be."""
        renewed = self._clock()
        while self._clock() - renewed < RENEW_SECONDS:
            await self._sleep(RETRY_SECONDS)
            try:
                if await asyncio.wait_for(self._try(), max(0.1, RENEW_SECONDS - (self._clock() - renewed))) is not None:
                    break
                renewed = self._clock()
            except (ApiError, asyncio.TimeoutError) as error:
                logger.warning("the lease is not renewed: %s", str(error) or "no answer in time")
        logger.error("%s leads no longer", self._identity)

    async def release(self) -> None:
        """Let another candidate have the Lease at once."""
        try:
            lease = await self._cluster.get(API_VERSION, "Lease", *self._place)
            if lease and lease["spec"].get("holderIdentity") == self._identity:
                await self._cluster.replace({**lease, "spec": {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}})
        except ApiError as error:
            logger.warning("the lease is not released: %s", error)

    async def _try(self) -> str | None:
        """Take or renew the Lease. Returns None where this candidate has it, else who has. Raises ApiError."""
        lease = await self._cluster.get(API_VERSION, "Lease", *self._place)
        if lease is None:
            namespace, name = self._place
            made = {"apiVersion": API_VERSION, "kind": "Lease", "metadata": {"name": name, "namespace": namespace}, "spec": self._spec({})}
            await self._cluster.create(made)
            return None
        spec = lease["spec"]
        holder, version = spec.get("holderIdentity") or "", lease["metadata"]["resourceVersion"]
        if self._seen is None or self._seen[0] != version:
            self._seen = (version, self._clock())
        fresh = self._clock() - self._seen[1] < float(spec.get("leaseDurationSeconds") or LEASE_SECONDS)
        if holder not in ("", self._identity) and fresh:
            return str(holder)
        await self._cluster.replace({**lease, "spec": self._spec(spec)})
        return None

    def _spec(self, before: Object) -> Object:
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        mine = before.get("holderIdentity") == self._identity
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": int(LEASE_SECONDS),
            "acquireTime": before.get("acquireTime", now) if mine else now,
            "renewTime": now,
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + (not mine and bool(before)),
        }
