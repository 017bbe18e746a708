"""What the operator knows of the cluster: one list and one watch per kind, trimmed on arrival.

kopf can watch too. It was tried, and with a thousand pipelines it held more memory than the operator may have (every object whole until all
kinds are listed); it forgets nothing of what was deleted while no watch was open; and a watch refused with 410 Gone ends its process.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from nemo_steerlm.pipeline.manifest import API_VERSION, KIND
from steerlm_operator import names
from steerlm_operator.cluster import ApiError, Cluster
from steerlm_operator.models import Object
from steerlm_operator.work_queue import NamespacedName

logger = logging.getLogger(__name__)

GONE = 410
FIRST_DELAY_SECONDS = 0.2
LONGEST_DELAY_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watched:
    """One kind of object, and what of it decisions read."""

    api_version: str
    kind: str
    spec: tuple[str, ...] = ()
    """Fields of the spec."""
    status: bool = False
    """Whether the status is read; where neither is, the API server is asked for metadata only."""
    selector: str = names.PIPELINE
    """Label selector: only what belongs to a pipeline, not every Job and pod of the cluster."""

    @property
    def metadata_only(self) -> bool:
        """Whether metadata is all that is read of it."""
        return self.kind != KIND and not (self.spec or self.status)

    def trimmed(self, body: Mapping[str, Any]) -> Object:
        """A thousand pipelines' pod templates would not fit."""
        if self.kind == KIND:
            return {**body, "metadata": {key: value for key, value in body["metadata"].items() if key != "managedFields"}}
        metadata = {key: body["metadata"][key] for key in KEPT_METADATA if key in body["metadata"]}
        small: Object = {"kind": self.kind, "metadata": metadata}
        small["spec"] = {key: value for key, value in (body.get("spec") or {}).items() if key in self.spec}
        if self.status:
            small["status"] = body.get("status") or {}
        return small


KEPT_METADATA = (
    "name", "namespace", "uid", "generation", "labels", "annotations", "ownerReferences", "deletionTimestamp", "deletionGracePeriodSeconds",
)  # fmt: skip
PIPELINES = Watched(api_version=API_VERSION, kind=KIND, selector="")
PODS = Watched(api_version="v1", kind="Pod", status=True)
CHILDREN = (
    Watched(api_version="batch/v1", kind="Job", spec=("suspend",), status=True),
    Watched(api_version="apps/v1", kind="Deployment", spec=("replicas",), status=True),
    Watched(api_version="v1", kind="Service"),
    Watched(api_version="v1", kind="ConfigMap"),
    Watched(api_version="networking.k8s.io/v1", kind="NetworkPolicy"),
    Watched(api_version="policy/v1", kind="PodDisruptionBudget"),
)


class Watches:
    """The controller's caches. Objects are kept as JSON text: a tenth of what they take as dictionaries."""

    def __init__(self, namespaces: Iterable[str], changed: Callable[[NamespacedName], None] = lambda _: None, selector: str = "") -> None:
        """``selector`` is the label selector of the pipelines that are looked at."""
        self.synced = asyncio.Event()
        """Everything was listed once: what is not here is not there."""
        self.changed = changed
        """Told the name of a pipeline when it, or an object of it, has changed."""
        self._watched = (dataclasses.replace(PIPELINES, selector=selector), PODS, *CHILDREN)
        self._places: tuple[str | None, ...] = tuple(namespaces) or (None,)
        self._known: dict[str, dict[NamespacedName, dict[str, bytes]]] = {watched.kind: {} for watched in self._watched}
        self._owners: dict[tuple[str, str | None], dict[str, NamespacedName]] = {}
        self._unlisted: set[tuple[str, str | None]] = set()

    def pipelines(self) -> list[NamespacedName]:
        """All pipelines."""
        return list(self._known[KIND])

    def pipeline(self, name: NamespacedName) -> Object | None:
        """One pipeline's resource."""
        return next(iter(self._stored(KIND, name)), None)

    def children(self, name: NamespacedName) -> list[Object]:
        """A pipeline's objects but its pods."""
        return [child for watched in CHILDREN for child in self._stored(watched.kind, name)]

    def pods(self, name: NamespacedName) -> list[Object]:
        """A pipeline's pods."""
        return self._stored(PODS.kind, name)

    def _stored(self, kind: str, name: NamespacedName) -> list[Object]:
        return [msgspec.json.decode(text) for text in self._known[kind].get(name, {}).values()]

    async def follow(self, cluster: Cluster) -> None:
        """Keep everything up to date, forever."""
        wanted = [(watched, place) for watched in self._watched for place in self._places]
        self._unlisted = {(watched.kind, place) for watched, place in wanted}
        await asyncio.gather(*(self._keep(cluster, watched, place) for watched, place in wanted))

    async def _keep(self, cluster: Cluster, watched: Watched, place: str | None) -> None:
        """List, then watch from there; list again where the watch cannot go on from where it was."""
        version, delay = "", FIRST_DELAY_SECONDS
        where = f"{watched.kind} in {place or 'all namespaces'}"
        while True:
            try:
                if not version:
                    version = await self._list(cluster, watched, place)
                async for kind, body in cluster.watch(
                    watched.api_version, watched.kind, place, watched.selector, version, metadata_only=watched.metadata_only
                ):
                    version = body["metadata"]["resourceVersion"]
                    delay = FIRST_DELAY_SECONDS
                    self._take(watched, place, kind, body)
            except ApiError as error:
                logger.log(logging.INFO if error.status == GONE else logging.WARNING, "watching %s: %s", where, error)
                version = "" if error.status == GONE else version
            except Exception:
                logger.exception("watching %s", where)
                version = ""
            await asyncio.sleep(delay * random.uniform(0.5, 1))
            delay = min(2 * delay, LONGEST_DELAY_SECONDS)

    async def _list(self, cluster: Cluster, watched: Watched, place: str | None) -> str:
        """Take in all there is and forget the rest; returns the version to watch from. Raises ApiError."""
        known = self._owners.setdefault((watched.kind, place), {})
        before, version = set(known), ""
        async for page in cluster.pages(watched.api_version, watched.kind, place, watched.selector, metadata_only=watched.metadata_only):
            version = page["metadata"]["resourceVersion"]
            for body in page["items"] or ():
                self._take(watched, place, "ADDED", body)
                before.discard(body["metadata"]["uid"])
        for uid in before:
            self._forget(watched, place, uid)
        self._unlisted.discard((watched.kind, place))
        if not self._unlisted:
            self.synced.set()
        return version

    def _take(self, watched: Watched, place: str | None, kind: str, body: Mapping[str, Any]) -> None:
        metadata = body["metadata"]
        if kind == "BOOKMARK":
            return
        if kind == "DELETED":
            self._forget(watched, place, metadata["uid"])
            return
        owner = metadata["name"] if watched.kind == KIND else metadata["labels"][names.PIPELINE]
        name = (metadata["namespace"], owner)
        known = self._owners.setdefault((watched.kind, place), {})
        if known.get(metadata["uid"], name) != name:
            self._forget(watched, place, metadata["uid"])  # somebody changed its label
        known[metadata["uid"]] = name
        self._known[watched.kind].setdefault(name, {})[metadata["uid"]] = msgspec.json.encode(watched.trimmed(body))
        self.changed(name)

    def _forget(self, watched: Watched, place: str | None, uid: str) -> None:
        name = self._owners.get((watched.kind, place), {}).pop(uid, None)
        if name is None:
            return
        stored = self._known[watched.kind]
        with contextlib.suppress(KeyError):
            del stored[name][uid]
            if not stored[name]:
                del stored[name]
        self.changed(name)
