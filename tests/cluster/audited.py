"""An audit log against a role: what a user asked for, and what of it the role grants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Right = tuple[str, str, str]
"""API group, resource with its subresource, verb."""


def rights(rules: Sequence[Mapping[str, Any]]) -> set[Right]:
    """Everything that rules grant."""
    return {(g, r, v) for rule in rules for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]}


def asked(events: Iterable[Mapping[str, Any]], user: str) -> tuple[set[Right], set[Right]]:
    """What a user asked for of resources: what authorization allowed, and what it refused."""
    allowed: set[Right] = set()
    refused: set[Right] = set()
    for event in events:
        reference = event.get("objectRef")
        if event["user"]["username"] != user or not reference or "resource" not in reference:
            continue
        resource = "/".join(filter(None, (reference["resource"], reference.get("subresource"))))
        right = (reference.get("apiGroup", ""), resource, event["verb"])
        if event.get("annotations", {}).get("authorization.k8s.io/decision") != "allow":
            refused.add(right)
            continue
        allowed.add(right)
        if event["verb"] == "patch" and event.get("responseStatus", {}).get("code") == 201:
            allowed.add((*right[:2], "create"))  # server-side apply made it
    return allowed, refused
