"""What the controller reads of pipelines beside the API server: the watches' caches, and what it remembers between two looks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from steerlm_operator.draft import Key, Refusal
from steerlm_operator.models import Object
from steerlm_operator.work_queue import NamespacedName


class Caches(Protocol):
    """What the watches brought. Reads only; ``watches`` fills it."""

    def pipelines(self) -> list[NamespacedName]:
        """All pipelines."""

    def pipeline(self, name: NamespacedName) -> Object | None:
        """One pipeline's resource."""

    def children(self, name: NamespacedName) -> list[Object]:
        """Objects labelled with a pipeline's name, pods left out, each with ``kind``."""

    def pods(self, name: NamespacedName) -> list[Object]:
        """Pods labelled with a pipeline's name."""


@dataclasses.dataclass(kw_only=True)
class ReconcileState:
    """What is known about one pipeline beside the watches. Losing it costs a few requests, nothing else."""

    refusals: dict[Key, Refusal] = dataclasses.field(default_factory=dict)
    creation_failures: dict[str, str] = dataclasses.field(default_factory=dict)
    queue_said: dict[str, str] = dataclasses.field(default_factory=dict)
    progress: dict[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    watch: tuple[str, ...] = ()
    """Pods whose output is read."""
    superseded: set[str] = dataclasses.field(default_factory=set)
    """Versions of the resource that were written over."""
    latest: Object | None = None
    """What was written over them."""
    look_at_claim: bool = True
    claim_event: str = ""
    claim_seen: float = 0.0
    errors: int = 0
    """In a row."""
