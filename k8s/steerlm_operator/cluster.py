"""Requests to the API server: few verbs, JSON both ways, one exception. No client library: that alone would double the memory."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import hashlib
import json
import logging
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import kopf

from nemo_steerlm.pipeline.manifest import API_VERSION
from steerlm_operator import metrics, names
from steerlm_operator.models import Object

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 30
WATCH_SILENCE_SECONDS = 90
"""A watch without an event or a bookmark for so long is asked for again: it may be dead."""
LINE_BYTES = 1 << 20
"""Half of the longest event: etcd takes objects of a megabyte and a half."""
PAGE = 100
"""Objects of one answer to a list: what is parsed at once has to fit the memory too."""
LOG_TAIL_BYTES = 64 << 10
PLURALS = {
    "SteerLMPipeline": "steerlmpipelines",
    "ConfigMap": "configmaps",
    "Deployment": "deployments",
    "Event": "events",
    "Job": "jobs",
    "JobSet": "jobsets",
    "Lease": "leases",
    "NetworkPolicy": "networkpolicies",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "Pod": "pods",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "PodGroup": "podgroups",
    "Service": "services",
}


_JSON = "application/json"
_METADATA = f"{_JSON};as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_METADATA_LIST = f"{_JSON};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


class ApiError(Exception):
    """The API server said no, or could not be reached (status 0)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def url_path(api_version: str, kind: str, namespace: str | None, name: str = "", subresource: str = "") -> str:
    """The path of a collection, an object or its subresource; without a namespace that of all of them."""
    root = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
    parts = [root, *(("namespaces", namespace) if namespace else ()), PLURALS[kind], name, subresource]
    return "/".join(part for part in parts if part)


class Cluster:
    """One connection pool to one API server, with the credentials that kopf found."""

    def __init__(self, connection: kopf.ConnectionInfo, login: Callable[[], kopf.ConnectionInfo | None] = lambda: None) -> None:
        self._login = login
        self._server = connection.server.rstrip("/")
        self._connection = connection
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Cluster:
        connector = aiohttp.TCPConnector(ssl=_ssl_context(self._connection), limit=32)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        auth = aiohttp.BasicAuth(self._connection.username, self._connection.password or "") if self._connection.username else None
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, auth=auth, headers={"User-Agent": names.FIELD_MANAGER})
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._session:
            await self._session.close()

    def renew(self, connection: kopf.ConnectionInfo) -> None:
        """Use a newer token: service account tokens live an hour."""
        self._connection = connection

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        """One object, or None. Raises ApiError."""
        try:
            return await self._request("GET", url_path(api_version, kind, namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def pages(
        self, api_version: str, kind: str, namespace: str | None, selector: str, *, metadata_only: bool = False
    ) -> AsyncIterator[Object]:
        """All objects of a kind with the labels, in one list after another. Raises ApiError; 410 where the listing took too long."""
        query = {"limit": str(PAGE), "labelSelector": selector}
        while True:
            path = url_path(api_version, kind, namespace)
            page = await self._request("GET", path, query=query, accept=_METADATA_LIST if metadata_only else _JSON)
            yield page
            if not (following := page["metadata"].get("continue")):
                return
            query["continue"] = following

    async def watch(
        self, api_version: str, kind: str, namespace: str | None, selector: str, version: str, *, metadata_only: bool = False
    ) -> AsyncIterator[tuple[str, Object]]:
        """Changes since ``version`` as ``(ADDED | MODIFIED | DELETED | BOOKMARK, object)``, until the stream ends or has long been silent.

        Raises ApiError; 410 where it remembers nothing that old.
        """
        if self._session is None:
            raise ApiError(0, "not connected: use it as a context manager")
        query = {"watch": "true", "allowWatchBookmarks": "true", "labelSelector": selector, "resourceVersion": version}
        headers = self._headers(_METADATA if metadata_only else _JSON)
        url = f"{self._server}{url_path(api_version, kind, namespace)}"
        timeout = aiohttp.ClientTimeout(total=None, connect=TIMEOUT_SECONDS, sock_read=WATCH_SILENCE_SECONDS)
        try:
            async with self._session.get(url, params=query, headers=headers, timeout=timeout, read_bufsize=LINE_BYTES) as stream:
                if stream.status >= 400:
                    self._log_in_again(stream.status)
                    raise ApiError(stream.status, _message(await stream.text(errors="replace")))
                async for line in stream.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise ApiError(int(event["object"].get("code") or 0), str(event["object"].get("message")))
                    yield event["type"], event["object"]
        except aiohttp.SocketTimeoutError:
            return
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise ApiError(0, f"the watch broke off: {type(error).__name__}: {error}") from error

    async def apply(self, wanted: Object, *, force: bool) -> None:
        """Server-side apply. Without ``force`` an object that somebody else made with other content is a 409. Raises ApiError."""
        metadata = wanted["metadata"]
        path = url_path(wanted["apiVersion"], wanted["kind"], metadata["namespace"], metadata["name"])
        # Who applies part of an object gives up the rest of it: a number alone has a manager of its own.
        part = wanted["kind"] == "Deployment" and "template" not in wanted["spec"]
        query = {"fieldManager": f"{names.FIELD_MANAGER}-scale" if part else names.FIELD_MANAGER, "force": str(force).lower()}
        await self._request("PATCH", path, wanted, query=query, content_type="application/apply-patch+yaml")

    async def create(self, wanted: Object) -> Object:
        """Make an object. Raises ApiError, 409 where it is there."""
        return await self._request("POST", url_path(wanted["apiVersion"], wanted["kind"], wanted["metadata"]["namespace"]), wanted)

    async def replace(self, wanted: Object) -> Object:
        """Write over the very version that was read. Raises ApiError, 409 where it has changed since."""
        metadata = wanted["metadata"]
        return await self._request("PUT", url_path(wanted["apiVersion"], wanted["kind"], metadata["namespace"], metadata["name"]), wanted)

    async def delete(self, api_version: str, kind: str, namespace: str, name: str, uid: str) -> None:
        """Delete the object if it is the one with this uid; its own children follow. Raises ApiError."""
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            await self._request("DELETE", url_path(api_version, kind, namespace, name), body)
        except ApiError as error:
            if error.status not in (404, 409):  # gone, or another one by now: both are fine
                raise

    async def write_status(self, resource: Mapping[str, Any], status: Mapping[str, Any]) -> Object:
        """Replace the status of the very version of the resource that was read. Raises ApiError 409 where it has changed since."""
        metadata = resource["metadata"]
        body = {
            "apiVersion": API_VERSION,
            "kind": "SteerLMPipeline",
            "metadata": dict(metadata),
            "spec": resource["spec"],
            "status": status,
        }
        return await self._request("PUT", url_path(API_VERSION, "SteerLMPipeline", metadata["namespace"], metadata["name"], "status"), body)

    async def post_event(self, resource: Mapping[str, Any], kind: str, reason: str, message: str) -> None:
        """An Event about a resource, named by its content: the same one is never there twice. Raises ApiError."""
        metadata = resource["metadata"]
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        digest = hashlib.sha256(f"{metadata['uid']}\0{reason}\0{message}\0{metadata.get('resourceVersion')}".encode()).hexdigest()[:16]
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{metadata['name']}.{digest}", "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": "SteerLMPipeline",
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "type": kind,
            "reason": reason,
            "message": message,
            "source": {"component": names.FIELD_MANAGER},
            "reportingComponent": names.FIELD_MANAGER,
            "reportingInstance": names.FIELD_MANAGER,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            await self._request("POST", url_path("v1", "Event", metadata["namespace"]), event)
        except ApiError as error:
            if error.status != 409:
                raise

    async def last_event(self, namespace: str, kind: str, name: str, *reasons: str, prefix: bool = False) -> str:
        """What was last said about an object under one of these reasons; empty where nothing was. Raises ApiError.

        With ``prefix``, about the object whose name begins with ``name``.
        """
        query = {"fieldSelector": f"involvedObject.kind={kind}" + ("" if prefix else f",involvedObject.name={name}")}
        found = await self._request("GET", url_path("v1", "Event", namespace), query=query)
        items = [event for event in found.get("items") or () if event.get("reason") in reasons]
        items = [event for event in items if event["involvedObject"]["name"].startswith(name)]
        items.sort(key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
        return str(items[-1].get("message", "")) if items else ""

    async def log_tail(self, namespace: str, pod: str, lines: int = 20) -> str:
        """The last lines that a pod printed. Raises ApiError."""
        query = {"tailLines": str(lines), "limitBytes": str(LOG_TAIL_BYTES)}
        return await self._text("GET", url_path("v1", "Pod", namespace, pod, "log"), query=query)

    async def may(self, namespace: str | None, group: str, resource: str, verb: str) -> bool:
        """Whether the API server allows this identity a verb, in one namespace or in all of them. Raises ApiError."""
        kind, _slash, subresource = resource.partition("/")
        asked = {"namespace": namespace or "", "group": group, "resource": kind, "subresource": subresource, "verb": verb}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": asked},
        }
        answer = await self._request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
        return bool(answer["status"]["allowed"])

    async def schemas(self, api_version: str) -> Object:
        """The schemas of an API group's version by name, as OpenAPI 3. Raises ApiError, 404 where the cluster does not serve it."""
        found = await self._request("GET", f"/openapi/v3/apis/{api_version}")
        schemas: Object = found["components"]["schemas"]
        return schemas

    async def api_groups(self) -> frozenset[str]:
        """Names of the API groups that the cluster has. Raises ApiError."""
        found = await self._request("GET", "/apis")
        return frozenset(group["name"] for group in found.get("groups") or ())

    async def _request(self, method: str, path: str, body: object = None, **options: Any) -> Object:
        found: Object = json.loads(await self._text(method, path, body, **options) or "{}")
        return found

    async def _text(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = _JSON,
        accept: str = _JSON,
    ) -> str:
        if self._session is None:
            raise ApiError(0, "not connected: use it as a context manager")
        headers = {"Content-Type": content_type}
        status, text = await self._send(self._session, method, path, body, query, headers | self._headers(accept))
        if self._log_in_again(status):
            status, text = await self._send(self._session, method, path, body, query, headers | self._headers(accept))
        if status >= 400:
            raise ApiError(status, _message(text))
        return text

    def _headers(self, accept: str) -> dict[str, str]:
        token = self._connection.token
        return {"Accept": accept, **({"Authorization": f"Bearer {token}"} if token else {})}

    def _log_in_again(self, status: int) -> bool:
        """Whether a refused request may be tried again: service account tokens are replaced on disk before they run out."""
        connection = self._login() if status == 401 else None
        if connection:
            self.renew(connection)
        return connection is not None

    async def _send(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        body: object,
        query: Mapping[str, str] | None,
        headers: Mapping[str, str],
    ) -> tuple[int, str]:
        data = json.dumps(body).encode() if body is not None else None
        try:
            async with session.request(method, f"{self._server}{path}", params=query, data=data, headers=headers) as response:
                text = await response.text(errors="replace")
                status = response.status
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            metrics.API_REQUESTS.labels(method, "unreachable").inc()
            raise ApiError(0, f"the API server cannot be reached: {type(error).__name__}: {error}") from error
        metrics.API_REQUESTS.labels(method, str(status)).inc()
        return status, text


def _message(text: str) -> str:
    with contextlib.suppress(ValueError, AttributeError):
        return str(json.loads(text).get("message") or text)
    return text[:500]


def _ssl_context(connection: kopf.ConnectionInfo) -> ssl.SSLContext | bool:
    if not connection.server.startswith("https:"):
        return True
    if connection.insecure:
        context = ssl._create_unverified_context()  # noqa: S323, SLF001 - the kubeconfig says so
    else:
        data = _decoded(connection.ca_data)
        path = str(connection.ca_path) if connection.ca_path else None
        context = ssl.create_default_context(cafile=path, cadata=data.decode() if data else None)
    if connection.certificate_path or connection.certificate_data:
        with tempfile.TemporaryDirectory() as folder:
            certificate = _as_file(folder, "certificate", connection.certificate_path, connection.certificate_data)
            key = _as_file(folder, "key", connection.private_key_path, connection.private_key_data)
            context.load_cert_chain(certificate, key)
    return context


def _as_file(folder: str, name: str, path: Any, data: str | bytes | None) -> str:
    if path:
        return str(path)
    file = Path(folder) / name
    file.touch(mode=0o600)
    file.write_bytes(_decoded(data) or b"")
    return str(file)


def _decoded(data: str | bytes | None) -> bytes | None:
    """Kubeconfig data is base64; kopf hands it on as it is."""
    if not data:
        return None
    raw = data if isinstance(data, bytes) else data.encode()
    return raw if raw.lstrip().startswith(b"-----") else base64.b64decode(raw)
