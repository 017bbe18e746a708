"""``python -m steerlm_operator.check``: what ``helm test`` runs in the cluster, under the operator's own identity.

Is the operator there, is the resource's definition the one that this operator was made for, and does its role reach? Each answer is a line.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import aiohttp
import kopf

from nemo_steerlm.core.environment import OPERATOR_RULES, OPERATOR_URL
from nemo_steerlm.pipeline import crd
from nemo_steerlm.pipeline.manifest import API_VERSION, KIND
from steerlm_operator import config as configs
from steerlm_operator.cluster import ApiError, Cluster

SHOWN = 5

CheckResult = tuple[bool, str]


async def operator(url: str) -> AsyncIterator[CheckResult]:
    """Whether the operator says that it is well."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        for page in ("healthz", "readyz"):
            try:
                async with session.get(f"{url}/{page}") as response:
                    yield response.status == 200, f"{url}/{page}: {(await response.text()).strip()}"
            except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
                yield False, f"{url}/{page}: {type(error).__name__}: {error}"


async def definition(cluster: Cluster) -> AsyncIterator[CheckResult]:
    """Whether the API server's definition has every field that this version knows: one that was not upgraded drops them silently."""
    try:
        schemas = await cluster.schemas(API_VERSION)
    except ApiError as error:
        yield False, f"{API_VERSION} is not served: {error}"
        return
    served = next(schema for name, schema in schemas.items() if name.endswith(f".{KIND}"))
    known = crd.definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    missing = sorted(set(_paths(known)) - set(_paths(served)))
    yield not missing, f"{API_VERSION} is served" + (f" without {_few(missing)}: upgrade {crd.NAME}" if missing else "")


async def role(cluster: Cluster, rules: list[dict[str, list[str]]], namespaces: tuple[str, ...]) -> AsyncIterator[CheckResult]:
    """Whether the operator's rights are in effect wherever it looks for pipelines."""
    for namespace in namespaces or (None,):
        asked = [
            (group, resource, verb)
            for rule in rules
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        ]
        try:
            allowed = await asyncio.gather(*(cluster.may(namespace, *each) for each in asked))
        except ApiError as error:
            yield False, f"the API server does not say what the operator may do: {error}"
            return
        refused = [f"{verb} {resource}" for (_, resource, verb), held in zip(asked, allowed, strict=True) if not held]
        where = f"namespace {namespace}" if namespace else "all namespaces"
        yield not refused, f"{len(asked) - len(refused)} of {len(asked)} rights in {where}" + (f"; not {_few(refused)}" if refused else "")


def _paths(schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for name, field in (schema.get("properties") or {}).items():
        if path or name in ("spec", "status"):  # the rest is every object's
            yield f"{path}{name}"
            yield from _paths(field, f"{path}{name}.")
    for inner in (schema.get("items"), schema.get("additionalProperties")):
        if isinstance(inner, Mapping):
            yield from _paths(inner, f"{path}*.")


def _few(items: list[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more


async def results(environment: Mapping[str, str]) -> AsyncIterator[CheckResult]:
    """The results of all checks, in order."""
    if url := environment.get(OPERATOR_URL):
        async for result in operator(url):
            yield result
    settings = kopf.OperatorSettings()
    connection = kopf.login_with_service_account(settings=settings) or kopf.login_with_kubeconfig(settings=settings)
    if connection is None:
        yield False, "no service account and no kubeconfig"
        return
    namespaces = configs.load().namespaces
    async with Cluster(connection) as cluster:
        async for result in definition(cluster):
            yield result
        async for result in role(cluster, json.loads(environment.get(OPERATOR_RULES, "[]")), namespaces):
            yield result


async def _main() -> int:
    failed = False
    async for well, text in results(os.environ):
        sys.stdout.write(f"{'ok    ' if well else 'FAILED'} {text}\n")
        failed |= not well
    return int(failed)


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
