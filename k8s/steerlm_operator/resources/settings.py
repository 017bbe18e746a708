"""The manifest as the stages' pods see it: an immutable ConfigMap named by its content."""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Any

from nemo_steerlm.pipeline.cluster_spec import ClusterFields
from nemo_steerlm.pipeline.manifest import API_VERSION, KIND
from steerlm_operator import names
from steerlm_operator.models import Object, Pipeline

FILE = "pipeline.json"
FOLDER = "/etc/steerlm"
PATH = f"{FOLDER}/{FILE}"


def text(pipeline: Pipeline) -> str:
    """The manifest without what only the cluster needs: changing that must not make another ConfigMap.

    Without what is at its default either: the worker may be of an earlier version, which refuses fields that it does not know.
    """
    left_out: Any = {**dict.fromkeys((*ClusterFields.model_fields, "serve"), True), "annotate": {"servers": {"replicas", "engine"}}}
    spec = pipeline.manifest.spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True, exclude=left_out)
    for parts in (("annotate", "servers"), ("annotate",)):
        *parents, last = parts
        place = functools.reduce(lambda found, key: found.get(key, {}), parents, spec)
        if place.get(last) == {}:
            del place[last]
    document = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": pipeline.name}, "spec": spec}
    return json.dumps(document, sort_keys=True, ensure_ascii=False, indent=1)


def name(pipeline: Pipeline) -> str:
    """The ConfigMap's name."""
    digest = hashlib.sha256(text(pipeline).encode()).hexdigest()[:10]
    return names.child(pipeline.name, "manifest", digest)


def config_map(pipeline: Pipeline) -> Object:
    """The ConfigMap."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name(pipeline),
            "namespace": pipeline.namespace,
            "labels": pipeline.labels(),
            "ownerReferences": [pipeline.owner],
        },
        "immutable": True,
        "data": {FILE: text(pipeline)},
    }
