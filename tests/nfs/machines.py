"""A Linux kernel that runs as a process (user-mode Linux), for what only a kernel with NFS shows: many have none, and load none.

It sees this machine's files, read-only. Kernel and loader of its modules are Debian packages, unpacked into the user's cache and not
installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from nemo_steerlm.data.packages import default_cache

PACKAGES = ("user-mode-linux", "kmod")
HERE = Path(__file__).parent
NFS = "/mnt/nfs"
"""Where the machines have the server's files."""


class UnavailableError(Exception):
    """Why there are no such machines here."""


def programs() -> Path:
    """The unpacked packages and the library for today's processors, from the cache or made now.

    Raises:
        UnavailableError: A tool or an archive is missing.
    """
    if platform.machine() != "x86_64" or os.geteuid() != 0:
        raise UnavailableError("user-mode Linux needs x86_64 here, and root to read every file")
    for tool in ("apt-get", "dpkg", "cc", "nsenter", "setpriv", "unshare", "ip"):
        if not shutil.which(tool):
            raise UnavailableError(f"{tool} is absent")
    source = HERE / "extended_state.c"
    root = default_cache() / "user-mode-linux" / hashlib.sha256(source.read_bytes() + repr(PACKAGES).encode()).hexdigest()[:16]
    if root.exists():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        fresh = Path(folder) / "root"
        _checked(["apt-get", "download", *PACKAGES], folder)
        for package in Path(folder).glob("*.deb"):
            _checked(["dpkg", "-x", str(package), str(fresh)], folder)
        (fresh / "lib").mkdir(exist_ok=True)
        (fresh / "lib/modules").symlink_to("../usr/lib/uml/modules")
        (fresh / "sbin/modprobe").unlink()
        (fresh / "sbin/modprobe").symlink_to("../bin/kmod")
        _checked(["cc", "-O1", "-shared", "-fPIC", "-o", str(fresh / "extended_state.so"), str(source)], folder)
        fresh.rename(root)
    return root


def _checked(argv: Sequence[str], folder: str) -> None:
    done = subprocess.run(argv, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise UnavailableError(f"{' '.join(argv[:3])} ended with {done.returncode}: {done.stdout.strip()[-500:]}")


def run(folder: Path, commands: Sequence[tuple[int, Sequence[str]]], *, memory: str = "1G", seconds: float = 600) -> list[tuple[int, str]]:
    """Run commands one after another, each on machine 0 or 1 of a new kernel; both have one NFS server's files in ``NFS``.

    Args:
        folder: An empty folder.
        commands: Number of the machine, and arguments.
        memory: How much the kernel has.
        seconds: After so long it is ended.

    Returns:
        Exit status and output of each.
    """
    root = programs()
    path = f"{root}/sbin:{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    variables = {"PATH": path, "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
    job = {"commands": [[number, list(argv)] for number, argv in commands], "modules": str(root), "environment": variables}
    (folder / "job.json").write_text(json.dumps(job))
    # The kernel's processes are processes here: in a namespace of their own they end with the first one, and that with us.
    alone = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]
    alone += ["sh", "-c", '"$@"; exit $?', "sh"]  # the first process of a namespace cannot abort, as a kernel that panics does
    kernel = [*alone, str(root / "usr/bin/linux.uml"), f"mem={memory}", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet"]
    kernel += ["con=null", "con0=null,fd:1", f"init={sys.executable}", "--", str(HERE / "inside.py"), str(folder)]
    environment = {**os.environ, "LD_PRELOAD": str(root / "extended_state.so"), "HOME": str(folder)}
    with (folder / "console.log").open("wb") as console:
        process = subprocess.Popen(kernel, stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=environment)
        try:
            process.wait(seconds)
        finally:
            process.kill()
            process.wait()
    done = folder / "done.json"
    assert done.exists(), (folder / "console.log").read_text(errors="replace")[-3000:]
    return [(status, output) for status, output in json.loads(done.read_text())]
