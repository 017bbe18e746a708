"""What ``make`` installs resolves for every Python that this project says it runs on, those of Debian and Ubuntu among them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UV = Path(sys.prefix) / "bin" / "uv"
PYTHONS = ("3.10", "3.11.2", "3.11", "3.12")
"""3.11.2 is Debian 12's, which some packages leave out."""


@pytest.mark.skipif(not UV.is_file(), reason="this environment was not made by make, which installs with uv")
@pytest.mark.parametrize("python", PYTHONS)
def test_the_pinned_versions_are_there_for(python):
    extras = re.findall(r"^(?:RUNS|EXTRAS) := (?:\$\(RUNS\),)?(\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(extras) == 2
    wanted = [f"--extra={extra}" for extra in ",".join(extras).split(",")]
    command = [UV, "pip", "compile", "--quiet", "--python-version", python, "--constraint", "constraints.txt", *wanted, "pyproject.toml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if "error sending request" in done.stderr or "network" in done.stderr.lower():
        pytest.skip("no package registry can be reached")
    assert done.returncode == 0, done.stderr
