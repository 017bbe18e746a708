"""``make mutants``: how many small faults in the code do the tests that mirror it notice?

mutmut changes one expression at a time and runs the room's tests against it. Each room has a working copy below ``.mutants``; a run that
was interrupted goes on where it was. ``make mutants ROOMS="core data"`` takes some rooms only. In the environment, ``SAMPLE=200`` takes a
random sample of that many mutants per room (always the same ones, so that a second run tests only what changed) instead of all, and
``JOBS=1`` one process instead of one per core.

A mutant that no test can notice because nothing changes for a user is *equivalent*: ``EQUIVALENT`` names it with the reason.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORK = ROOT / ".mutants"

ROOMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "core": (("nemo_steerlm/core/*",), ("tests/core",)),
    "data": (("nemo_steerlm/data/*",), ("tests/data",)),
    "client": (("nemo_steerlm/client/*",), ("tests/client",)),
    "annotation": (("nemo_steerlm/annotation/*",), ("tests/annotation", "tests/client")),
    "evaluation": (("nemo_steerlm/evaluation/*",), ("tests/evaluation",)),
    "pipeline": (("nemo_steerlm/pipeline/*",), ("tests/pipeline",)),
    "serving": (("nemo_steerlm/serving/*",), ("tests/serving",)),
    "operator": (("steerlm_operator/reconcile.py", "steerlm_operator/progress.py", "steerlm_operator/*readings.py",
                  "steerlm_operator/draft.py", "steerlm_operator/changes.py", "steerlm_operator/work_queue.py",
                  "steerlm_operator/resources/*"), ("tests/operator",)),
}  # fmt: skip
"""Room to what is changed and the tests that mirror it."""

SLOW = ("test_end_to_end.py", "test_kills.py", "test_real_server.py", "test_page*.py", "test_lm_eval.py")
"""Tests that start several heavy processes each: too slow to run per mutant."""

ELSEWHERE = ("tests/data/test_stores.py::test_a_real_s3_servers_objects",)
"""Tests that run the package in an environment of their own, which has no mutmut: a mutated module cannot be imported there."""

_IMPORTED = "runs while its module is imported, before mutmut switches a mutant on; tests hold what it makes"
EQUIVALENT: dict[str, str] = {
    "nemo_steerlm.core.attributes.x__schema__*": _IMPORTED,
    "nemo_steerlm.core.yaml_files.x__resolve__*": _IMPORTED,
}
"""Pattern of mutant names to why nothing changes for a user, or why this tool cannot tell."""

ALIVE = (0, 33)
"""Exit codes that mutmut stores for a mutant that no test noticed, and for one that no test reaches."""

WANTED = 90.0
"""Percent of the mutants that the tests of a room notice."""


def main() -> None:
    """Run the rooms that are named, all by default, and print a line for each. Exits 1 if one is below ``WANTED``."""
    names = sys.argv[1:] or list(ROOMS)
    if unknown := [name for name in names if name not in ROOMS]:
        sys.exit(f"unknown room {unknown[0]}; known: {', '.join(ROOMS)}")
    shares = {name: run(name) for name in names}
    sys.exit(any(share < WANTED for share in shares.values()))


def run(room: str) -> float:
    """Percent of the room's mutants that are noticed."""
    folder = WORK / room
    copy(folder)
    configure(folder, room)
    program = str(Path(sys.executable).with_name("mutmut"))
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    jobs = ["--max-children", os.environ["JOBS"]] if "JOBS" in os.environ else []
    # mutmut has no command that only makes the mutants and measures the tests: asked for one that does not exist, it does that and ends.
    prepared = subprocess.run([program, "run", *jobs, "none"], cwd=folder, env=environment, check=False, capture_output=True, text=True)
    if "nothing matches" not in prepared.stderr:
        sys.exit(f"{room}: {prepared.stdout[-4000:]}{prepared.stderr[-2000:]}")
    chosen = sample(list(verdicts(folder)))
    if untested := [name for name in chosen if verdicts(folder)[name] is None]:
        subprocess.run([program, "run", *jobs, *untested], cwd=folder, env=environment, check=True)
    found = {name: code for name, code in verdicts(folder).items() if name in chosen}
    alive = [name for name, code in found.items() if code in ALIVE]
    equivalent = [name for name in alive if any(fnmatch.fnmatch(name, pattern) for pattern in EQUIVALENT)]
    counted = len(found) - len(equivalent)
    share = 100.0 * (len(found) - len(alive)) / max(1, counted)
    print(f"{room}: {len(found) - len(alive)} of {counted} mutants noticed ({share:.1f} %), {len(equivalent)} equivalent", flush=True)
    (folder / "alive.txt").write_text("".join(f"{name}\n" for name in alive if name not in equivalent))
    return share


def verdicts(folder: Path) -> dict[str, int | None]:
    """Every mutant of a room by name, with the exit code of pytest under it."""
    files = [json.loads(path.read_bytes()) for path in (folder / "mutants").rglob("*.meta")]
    return {name: code for file in files for name, code in file["exit_code_by_key"].items()}


def sample(names: list[str]) -> list[str]:
    """As many of the names as ``SAMPLE`` says. The smallest digests are taken, so another mutant elsewhere changes little."""
    wanted = int(os.environ.get("SAMPLE", len(names)))
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:wanted]


def copy(folder: Path) -> None:
    """Bring the working copy to the state of the tree; mutmut tests again what has changed."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        # The operator is a package of its own; mutmut wants every source below one folder.
        source, target = ROOT / name, folder / name.removeprefix("k8s/" if name.startswith("k8s/steerlm_operator") else "")
        if source.is_file() and not (target.is_file() and target.stat().st_mtime_ns == source.stat().st_mtime_ns):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def configure(folder: Path, room: str) -> None:
    """Tell mutmut in the copy's ``pyproject.toml`` what to change and which tests to run."""
    sources, tests = ROOMS[room]
    package = sources[0].partition("/")[0]
    ignored = [f"--ignore-glob=*/{name}" for name in SLOW]
    others = [name for name in ("nemo_steerlm", "steerlm_operator") if name != package]
    settings = {
        "source_paths": [package],
        "only_mutate": list(sources),
        "also_copy": [*others, "k8s", "charts", "examples", "tests", "docs", "README.md", "LICENSE", "pyproject.toml", "Makefile"],
        "pytest_add_cli_args": ["-q", "-p", "no:randomly", *ignored, *(f"--deselect={name}" for name in ELSEWHERE)],
        "pytest_add_cli_args_test_selection": list(tests),
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (folder / "pyproject.toml").write_text(f"{text}\n[tool.mutmut]\n" + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
