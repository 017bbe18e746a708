"""``steerlm schema``."""

from __future__ import annotations

import json

import typer

from nemo_steerlm.pipeline import crd as crds
from nemo_steerlm.pipeline.manifest import SteerLMPipeline


def schema(crd: bool = typer.Option(False, "--crd", help="Print the Kubernetes CustomResourceDefinition instead, as YAML.")) -> None:
    """Print the JSON schema of a pipeline file, for editors that complete and check YAML."""
    if crd:
        print(f"{crds.HEADER}{crds.dump(crds.definition())}", end="")
    else:
        print(json.dumps(SteerLMPipeline.model_json_schema(by_alias=True), indent=2))
