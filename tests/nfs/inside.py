"""The first process of the kernel that ``machines.py`` starts: an NFS server, two machines that mount it, and commands on them.

Each machine has namespaces of its own for network, mounts and host name, so the kernel keeps an NFS client of its own for it, with caches,
locks and identity. The server is the kernel's; what its programs would answer when it asks whom it serves what, is answered here.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

EXPORT = "/mnt/export"
NFSD = Path("/proc/fs/nfsd")
NEVER = str(2**31 - 1)
FLAGS = 0x2 | 0x400 | 0x2000
"""Any port, no checks of subtrees, and a file system with a number: 0."""
POWER_OFF = 0x4321FEDC
C_LIBRARY = ctypes.CDLL(None, use_errno=True)


def main(folder: Path) -> None:
    """Run ``job.json`` of a folder; what came of it is ``done.json`` there."""
    Path("/dev/shm").mkdir(exist_ok=True)
    for kind, target in (("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/mnt"), ("tmpfs", "/run"), ("tmpfs", "/dev/shm")):
        mount(kind, target, kind)
    for name in ("export", "out", "home", "tmp"):
        Path("/mnt", name).mkdir()
    mount("none", "/mnt/out", "hostfs", str(folder))
    job = json.loads(Path("/mnt/out/job.json").read_text())
    os.environ.update(job["environment"], HOME="/mnt/home", TMPDIR="/mnt/tmp")
    for module in ("nfsd", "nfsv4", "veth"):
        run("modprobe", "-d", job["modules"], module)
    serve()
    machines = [machine(number) for number in range(2)]
    done = []
    for number, command in job["commands"]:
        argv = ["nsenter", "-t", str(machines[number]), "-m", "-n", "-u", *command]
        ended = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        done.append([ended.returncode, ended.stdout])
    Path("/mnt/out/done.json").write_text(json.dumps(done))


def serve() -> None:
    """An NFSv4 server on every address, of ``EXPORT``."""
    mount("tmpfs", EXPORT, "tmpfs")
    os.chmod(EXPORT, 0o777)
    mount("nfsd", str(NFSD), "nfsd")
    answers: dict[str, Callable[[list[str]], str]] = {
        "auth.unix.ip": lambda asked: f"{asked[0]} {asked[1]} {NEVER} all",
        "auth.unix.gid": lambda asked: f"{asked[0]} {NEVER} 0",
        "nfsd.fh": lambda asked: f"{' '.join(asked)} {NEVER}" + (f" {EXPORT}" if asked[1] == "1" else ""),
        "nfsd.export": lambda asked: f"{asked[0]} {asked[1]} {NEVER}" + (f" {FLAGS} 65534 65534 0" if asked[1] == EXPORT else ""),
    }
    for name, answer in answers.items():
        threading.Thread(target=_answer, args=(Path("/proc/net/rpc", name, "channel"), answer), daemon=True).start()
    # Nobody has locks to claim back: without this the first ones would be refused for 90 s.
    settings = {"nfsv4leasetime": "10", "nfsv4gracetime": "10", "versions": "-3 +4 +4.1 +4.2", "portlist": "tcp 2049", "threads": "4"}
    for name, text in settings.items():
        write(NFSD / name, text)


def _answer(channel: Path, answer: Callable[[list[str]], str]) -> None:
    descriptor = os.open(channel, os.O_RDWR)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while True:
        poll.poll()
        if asked := os.read(descriptor, 4096).split():
            os.write(descriptor, (answer([word.decode() for word in asked]) + "\n").encode())


def machine(number: int) -> int:
    """A machine with the server's files in ``/mnt/nfs``, attributes cached as by default. Returns a process of it."""
    Path("/mnt/nfs").mkdir(exist_ok=True)
    holder = subprocess.Popen(["unshare", "-m", "-n", "-u", "--propagation", "private", "sleep", "infinity"])
    enter = ["nsenter", "-t", str(holder.pid), "-m", "-n", "-u"]
    own = os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{holder.pid}/ns/net") == own:
        pass
    inside, outside = f"10.0.{number}.2", f"10.0.{number}.1"
    run("ip", "link", "add", f"to{number}", "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
    run("ip", "address", "add", f"{outside}/24", "dev", f"to{number}")
    run("ip", "link", "set", f"to{number}", "up")
    run(*enter, "sh", "-ec", f"ip link set lo up; ip address add {inside}/24 dev eth0; ip link set eth0 up; hostname machine-{number}")
    run(*enter, sys.executable, __file__, "mount", f"{outside}:/", "/mnt/nfs", "nfs4", f"vers=4.2,addr={outside},clientaddr={inside}")
    return holder.pid


def mount(source: str, target: str, kind: str, options: str = "") -> None:
    """mount(2), without the programs that some file systems have for it."""
    if C_LIBRARY.mount(source.encode(), target.encode(), kind.encode(), 0, options.encode()):
        error = ctypes.get_errno()
        raise OSError(error, f"mount {source} on {target}: {os.strerror(error)}")


def run(*argv: str) -> None:
    ended = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(argv)} ended with {ended.returncode}: {ended.stdout}")


def write(path: Path, text: str) -> None:
    """One write, as files of the kernel want it."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, f"{text}\n".encode())
    finally:
        os.close(descriptor)


def power_off() -> None:
    """End the kernel, however this process ended."""
    os.sync()
    C_LIBRARY.reboot(POWER_OFF)


if __name__ == "__main__":
    if sys.argv[1] == "mount":  # a part of this, in another machine's namespaces
        mount(*sys.argv[2:])
    else:
        atexit.register(power_off)
        main(Path(sys.argv[1]))
