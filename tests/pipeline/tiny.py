"""The example pipeline made smaller still: what the tests of both executors run, on one machine and on a cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from tests.inputs import DATA, OASST

TREES = OASST.name
BASE = "stories260K"
EXAMPLE = Path(__file__).parents[2] / "examples" / "pipelines" / "oasst_tiny.yaml"
STEERLM = [sys.executable, "-m", "nemo_steerlm.cli.main"]
STAGES = ("prepare", "train-value", "annotate", "train-steer", "evaluate")


def manifest(name: str = "oasst-tiny", **sections: dict[str, Any]) -> dict[str, Any]:
    """The manifest, its inputs in ``inputs/`` beside it, with other fields in some sections of its spec."""
    content: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())
    content["metadata"]["name"] = name
    spec = content["spec"]
    spec["data"]["oasst"]["path"] = f"inputs/{TREES}"
    del spec["data"]["oasst"]["limit"]  # more to label: a fast machine must not be done before it is disturbed
    spec["model"]["base"] = f"inputs/{BASE}"
    for part in ("trainValue", "trainSteer"):
        spec[part] |= {"maxSteps": 4, "validateEvery": 2, "limitValidationBatches": 1, "globalBatchSize": 4, "microBatchSize": 2}
    spec["evaluate"] |= {"attributes": ["quality"], "samplesPerLevel": 2, "maxTokens": 8}
    for section, fields in sections.items():
        spec[section] = {**spec.get(section, {}), **fields}
    return content


def manifest_file(folder: Path, **sections: dict[str, Any]) -> Path:
    """The manifest as a file in ``folder``, inputs included."""
    if not (folder / "inputs").exists():
        (folder / "inputs").symlink_to(DATA)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(manifest(**sections)))
    return path
