"""Python environments for programs that cannot live in this one: made by uv once, then kept in the user's cache."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from nemo_steerlm.data.packages import default_cache


def environment(name: str, packages: Sequence[str], overrides: Sequence[str] = ()) -> Path:
    """The Python of the environment ``name`` with ``packages``. Skips the test where it cannot be made.

    ``overrides`` replace what packages ask for. A new version needs a new name.
    """
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    home = default_cache() / "environments"
    home.mkdir(parents=True, exist_ok=True)
    folder = home / name
    python = folder / "bin" / "python"
    with (home / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / ".complete").exists():
            return python
        shutil.rmtree(folder, ignore_errors=True)
        replaced = home / f"{name}.overrides.txt"
        replaced.write_text("".join(f"{line}\n" for line in overrides))
        for command in (
            [uv, "venv", "--quiet", "--python", sys.executable, str(folder)],
            [uv, "pip", "install", "--quiet", "--python", str(python), "--override", str(replaced), *packages],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no environment for {name}: {(done.stderr.strip().splitlines() or ['uv failed'])[-1]}")
        (folder / ".complete").touch()
    return python
