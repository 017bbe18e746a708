"""Every object of one pipeline, as it was last meant to be. ``python -m tests.operator.golden`` pins them anew: look at what it changes."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from steerlm_operator import models
from steerlm_operator.config import OperatorConfig
from steerlm_operator.reconcile import objects

from tests.operator.conftest import RESOURCE

FILE = Path(__file__).with_name("golden_objects.yaml")


def rendered() -> str:
    found = objects(models.parse(RESOURCE, OperatorConfig()))
    plain = (json.loads(json.dumps(each)) for each in found)  # no tuples, and nothing shared
    return "---\n".join(yaml.safe_dump(each, width=140) for each in plain)


if __name__ == "__main__":
    FILE.write_text(rendered(), encoding="utf-8")
