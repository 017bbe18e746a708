"""Small manifests to vary."""

from __future__ import annotations

import copy
from typing import Any

SMALLEST: dict[str, Any] = {
    "apiVersion": "steerlm.dev/v1alpha1",
    "kind": "SteerLMPipeline",
    "metadata": {"name": "small"},
    "spec": {
        "attributes": {"preset": "oasst"},
        "data": {"oasst": {"path": "trees.jsonl"}},
        "model": {"base": "base"},
    },
}


def with_field(path: str, value: Any) -> dict[str, Any]:
    """The smallest manifest with the field at the dotted ``path`` set."""
    manifest = copy.deepcopy(SMALLEST)
    *parents, last = path.split(".")
    place = manifest
    for key in parents:
        place = place.setdefault(key, {})
    place[last] = value
    return manifest
