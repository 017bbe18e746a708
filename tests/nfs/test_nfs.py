"""A real NFSv4 server under the work directory, and two machines that mount it with caches of their own, as a cluster's nodes do."""

from __future__ import annotations

import json
import sys

import pytest

from tests.nfs import machines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
PYTHON = (sys.executable, "-c")
WHAT_LOCKS_NEED = """
import errno, fcntl, json
found = {}
for mode, kind in (("w", "SH"), ("w", "EX"), ("r", "SH"), ("r", "EX"), ("a+", "SH"), ("a+", "EX")):
    with open("/mnt/nfs/file", mode) as file:
        try:
            fcntl.flock(file, getattr(fcntl, f"LOCK_{kind}") | fcntl.LOCK_NB)
            found[f"{mode} {kind}"] = "granted"
        except OSError as error:
            found[f"{mode} {kind}"] = errno.errorcode[error.errno]
print(json.dumps(found))
"""
HOLD = """
import sys, time
from pathlib import Path
from nemo_steerlm.annotation.journal import Journal, JournalHeader
from nemo_steerlm.core.errors import TryAgainError
from nemo_steerlm.pipeline.artifacts import WorkDirectory
folder, what = Path("/mnt/nfs"), sys.argv[1]
header = JournalHeader(model="m", turns="all", languages=False, shard="0/1")
places = {
    "shard": lambda: WorkDirectory(folder / "work").lock("annotate", shared=True, wait=False),
    "stage": lambda: WorkDirectory(folder / "work").lock("annotate", wait=False),
    "turn": lambda: WorkDirectory(folder / "work").lock("annotate"),
    "journal": lambda: Journal(folder / "labels.journal", header),
}
try:
    with places[what]():
        print("held", flush=True)
        if "until-released" in sys.argv:
            (folder / "held").touch()
            while not (folder / "released").exists():
                time.sleep(0.1)
except TryAgainError:
    print("in use")
"""
IN_THE_BACKGROUND = """
rm -f /mnt/nfs/held /mnt/nfs/released
"$@" until-released >/mnt/nfs/said 2>&1 &
until [ -e /mnt/nfs/held ]; do kill -0 $! || { cat /mnt/nfs/said; exit 1; }; sleep 0.1; done
"""


def run(folder, *commands):
    """What the commands say, each of which has to end well."""
    try:
        done = machines.run(folder, commands)
    except machines.UnavailableError as error:
        pytest.skip(str(error))
    assert [status for status, _ in done] == [0] * len(commands), done
    return [said.strip() for _, said in done]


def held(machine, what):
    return machine, ["sh", "-c", IN_THE_BACKGROUND, "sh", *PYTHON, HOLD, what]


def tried(machine, what):
    return machine, [*PYTHON, HOLD, what]


def test_locks_hold_between_machines(tmp_path):
    """A lock there is a byte range's: a shared one needs a file that is open for reading, an exclusive one a file open for writing."""
    release = (1, ["touch", "/mnt/nfs/released"])
    said = run(
        tmp_path,
        (0, [*PYTHON, WHAT_LOCKS_NEED]),
        *(held(0, "shard"), tried(1, "shard"), tried(1, "stage"), release, tried(1, "turn")),
        *(held(0, "journal"), tried(1, "journal"), release),
    )
    assert json.loads(said[0]) == dict.fromkeys(("w EX", "r SH", "a+ SH", "a+ EX"), "granted") | dict.fromkeys(("w SH", "r EX"), "EBADF")
    assert said[2:4] == ["held", "in use"], "shards go side by side, and a stage waits for them"
    assert said[5] == "held", "once the other machine has let go"
    assert said[7] == "in use", "a journal that another machine writes"
