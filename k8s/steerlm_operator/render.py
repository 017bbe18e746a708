"""The objects of a pipeline file, for ``steerlm plan --output yaml``: the same builders, without a cluster."""

from __future__ import annotations

from pathlib import Path

from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.pipeline import manifest as manifests
from steerlm_operator import config as configs
from steerlm_operator import models, reconcile

NO_UID = "00000000-0000-0000-0000-000000000000"
"""Stands for the uid that the API server gives."""


def render(file: Path, namespace: str, config_file: Path | None) -> list[models.Object]:
    """Everything that the first attempt of each stage makes. Raises UsageError or ConfigError."""
    manifest = manifests.load(file)
    resource = manifest.model_dump(mode="json", by_alias=True, exclude_none=True)
    resource["metadata"] |= {"namespace": namespace, "uid": NO_UID}
    config = configs.load(str(config_file) if config_file else None)
    if not config.images.worker:
        raise UsageError("images.worker is set neither in the pipeline nor in the operator's configuration")
    return reconcile.objects(models.parse(resource, config))
