"""The release workflow: the shape GitHub wants, no right it does not need, and nothing to set but the registry. It cannot run here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github/workflows/release.yaml"


def said_by(*command):
    done = subprocess.run([Path(sys.executable).parent / command[0], *command[1:], WORKFLOW], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_it_has_the_shape_of_a_workflow():
    code, said = said_by("check-jsonschema", "--builtin-schema", "vendor.github-workflows")
    assert code == 0, said


def test_zizmor_has_nothing_to_say():
    code, said = said_by("zizmor", "--offline", "--no-progress")
    assert code == 0, said


def test_it_builds_every_image_and_asks_for_a_registry_only():
    text = WORKFLOW.read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    built = {entry["file"] for entry in jobs["images"]["strategy"]["matrix"]["include"]}
    assert built == {path.name.removesuffix(".Dockerfile") for path in (ROOT / "k8s/images").glob("*.Dockerfile")}
    assert set(re.findall(r"(?:vars|secrets)\.(\w+)", text)) == {"REGISTRY", "REGISTRY_USER", "REGISTRY_PASSWORD"}
