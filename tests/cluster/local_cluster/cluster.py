"""A cluster on this machine: up, down, status, shell, and faults on demand."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from local_cluster import binaries, certificates, control_groups, images
from local_cluster.client import Cluster
from local_cluster.errors import ClusterError, UnavailableError
from local_cluster.layout import FIRST_SERVICE_ADDRESS, NODE, NODE_ADDRESS, PRIVATE, Layout

UNSHARE = ["unshare", "-m", "-n", "-p", "-i", "-u", "--fork", "--mount-proc", "--propagation", "private", "--kill-child=SIGKILL"]
START_PATIENCE = 600.0


def unavailable() -> str | None:
    """Why this machine cannot run a cluster, or None."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return "the cluster's programs are for Linux on x86_64"
    if os.geteuid() != 0:
        return "the cluster needs root: it makes network, mount and process namespaces and control groups"
    for program, package in binaries.HOST_PROGRAMS.items():
        if shutil.which(program) is None:
            return f"{program} is absent (Debian package {package})"
    done = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    return f"namespaces cannot be made here: {done.stderr.strip()}" if done.returncode else None


class LocalCluster(Cluster):
    """A running cluster of this machine."""

    def __init__(self, state: Path) -> None:
        self.layout = Layout.load(state)
        self.state = state
        self.process: subprocess.Popen[bytes] | None = None
        self._inside: list[subprocess.Popen[bytes]] = []
        super().__init__(self.layout.kubeconfig("admin"), self.layout.program("kubectl"), cache=state / "clients")

    @classmethod
    def up(cls, state: Path, *, node: bool, tied: bool = False, mounts: dict[str, str] | None = None) -> LocalCluster:
        """Start a cluster in an empty folder. ``tied`` ends it when the calling process ends, however that ends.

        Raises:
            UnavailableError: this machine cannot run it.
            ClusterError: it did not come up; the logs are in ``state/log``.
        """
        if reason := unavailable():
            raise UnavailableError(reason)
        state = state.resolve()
        if any(state.is_relative_to(folder) for folder in PRIVATE):
            raise UnavailableError(f"{state}: the cluster covers {', '.join(PRIVATE)} inside; choose a folder elsewhere")
        programs = binaries.ensure()
        listener = socket.create_server(("127.0.0.1", 0))
        layout = Layout(
            state=str(state),
            binaries=str(programs.root),
            environment=programs.environment,
            network_plugins=str(programs.network_plugins),
            port=listener.getsockname()[1],
            # A cluster that outlives this process is nobody's to clean up after.
            cgroup=control_groups.name_for(os.getpid() if tied else 1),
            node=node,
            images=images.default_images(),
            mounts={**images.default_mounts(), **(mounts or {})},
        )
        _write_state(layout)
        cluster = cls(state)
        with listener:
            cluster._launch(listener, tied)
        return cluster

    def _launch(self, listener: socket.socket, tied: bool) -> None:
        if self.layout.node:
            try:
                control_groups.create(self.layout.cgroup)
            except OSError as error:
                control_groups.remove(self.layout.cgroup)
                raise UnavailableError(f"control groups cannot be made here: {error}") from error
        reading, writing = os.pipe()
        environment = {"HOME": "/root", "LANG": "C.UTF-8", **self.layout.environment, "PYTHONPATH": str(Path(__file__).parents[1])}
        init = [sys.executable, "-m", "local_cluster.init", str(self.state), str(listener.fileno()), str(writing)]
        tie = ["setpriv", "--pdeathsig", "KILL"] if tied else []
        with self.layout.path("log", "init.log").open("wb") as log:
            options: dict[str, Any] = {
                "stdin": subprocess.DEVNULL,
                "stdout": log,
                "stderr": log,
                "env": environment,
                "start_new_session": True,
            }
            self.process = subprocess.Popen([*tie, *UNSHARE, *init], pass_fds=(listener.fileno(), writing), **options)
        os.close(writing)
        self.state.joinpath("pid").write_text(f"{self.process.pid}\n")
        try:
            self._follow(reading)
        except BaseException:
            self.down(keep_logs=True)
            raise
        finally:
            os.close(reading)

    def _follow(self, pipe: int) -> None:
        """Read the steps of the start until ``ready``."""
        deadline = time.monotonic() + START_PATIENCE
        with self.state.joinpath("steps.jsonl").open("wb") as steps:
            buffer = b""
            while b'"ready"' not in buffer:
                if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    raise ClusterError(f"the cluster was not up after {START_PATIENCE:.0f} s; its last step: {buffer.decode()[-200:]}")
                block = os.read(pipe, 65536)
                steps.write(block)
                steps.flush()
                buffer += block
                if b'"unavailable"' in buffer:
                    raise UnavailableError(f"a cluster cannot run here: {json.loads(buffer.splitlines()[-1])['reason']}")
                if not block or b'"failed"' in buffer:
                    log = self.layout.path("log", "init.log").read_text()[-2000:]
                    raise ClusterError(f"the cluster did not come up: {buffer.decode()[-400:]}{log} (logs: {self.state}/log)")

    def down(self, *, keep_logs: bool = False) -> None:
        """End everything by one signal, then remove what namespaces do not own: control groups and the state folder."""
        pid = int(self.state.joinpath("pid").read_text())
        inside = _child_of(pid)
        descriptors = [_pidfd(number) for number in (inside, pid) if number]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        for process in (self.process, *self._inside):
            if process:
                process.wait()
        for descriptor in filter(None, descriptors):
            select.select([descriptor], [], [], 30)
            os.close(descriptor)
        control_groups.remove(self.layout.cgroup)
        for entry in list(self.state.iterdir()):
            if entry.is_dir() and not (keep_logs and entry.name in ("log", "podlogs")):
                shutil.rmtree(entry, ignore_errors=True)
            elif not entry.is_dir() and not (keep_logs and entry.name in ("audit.log", "steps.jsonl")):
                entry.unlink()
        if not keep_logs:
            self.state.rmdir()

    @property
    def running(self) -> bool:
        try:
            return _child_of(int(self.state.joinpath("pid").read_text())) is not None
        except FileNotFoundError:
            return False

    def shell(self, argv: list[str]) -> int:
        """Run a command inside the cluster's namespaces, with its programs on the path."""
        return subprocess.run([*self._enter(), *(argv or ["bash"])], check=False).returncode

    def run_inside(self, argv: list[str], name: str) -> subprocess.Popen[bytes]:
        """Start a program inside, with an administrator's rights. It ends with the cluster; its output is ``log/NAME.log``."""
        with self.layout.path("log", f"{name}.log").open("wb") as log:
            process = subprocess.Popen([*self._enter(), *argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._inside.append(process)
        return process

    def _enter(self) -> list[str]:
        inside = _child_of(int(self.state.joinpath("pid").read_text()))
        settings = {
            **self.layout.environment,
            "KUBECONFIG": str(self.kubeconfig),
            "CONTAINERD_ADDRESS": "/run/containerd/containerd.sock",
            "CONTAINERD_NAMESPACE": "k8s.io",
        }
        namespaces = ["-m", "-n", "-p", "-i", "-u"]
        return ["nsenter", "-t", str(inside), *namespaces, "--", "env", *(f"{key}={value}" for key, value in settings.items())]

    def components(self) -> dict[str, dict[str, int]]:
        """Of every component its pid inside, its restarts, its memory in KiB."""
        return self._control(op="list")

    def stop(self, component: str) -> None:
        """End a component with SIGKILL; it stays down until ``start``."""
        self._control(op="stop", component=component)

    def start(self, component: str) -> None:
        self._control(op="start", component=component)

    def restart(self, component: str) -> None:
        self.stop(component)
        self.start(component)

    def signal(self, component: str, number: int) -> None:
        """For example SIGSTOP, for a component that hangs; SIGCONT ends that."""
        self._control(op="signal", component=component, signal=number)

    def lose_pod(self, uid: str) -> None:
        """End a pod's processes with SIGKILL, as a machine ends them that loses its power. A kubelet that runs would see it."""
        for process in control_groups.pod_processes(self.layout.cgroup, uid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def audit(self) -> list[dict[str, Any]]:
        """The API server's audit events so far."""
        text = self.state.joinpath("audit.log").read_text()
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def _control(self, **request: Any) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(str(self.state / "control"))
            connection.sendall(json.dumps(request).encode() + b"\n")
            answer: dict[str, Any] = json.loads(connection.makefile().readline())
        if "error" in answer:
            raise ClusterError(f"{request}: {answer['error']}")
        return answer


def _write_state(layout: Layout) -> None:
    for folder in ("log", "config", "kubeconfig", "podlogs", "volumes"):
        layout.path(folder).mkdir(parents=True)
    layout.save()
    issued = certificates.identities(NODE, NODE_ADDRESS, FIRST_SERVICE_ADDRESS)
    certificates.issue(layout.path("pki"), issued)
    for identity in issued:
        layout.path("kubeconfig", identity.name).write_text(
            certificates.certificate_kubeconfig(layout.path("pki"), identity.name, layout.server)
        )
    if layout.node:
        images.write_archive(layout.path("config", "images.tar"), layout.images, Path(layout.program("pause")))


def _child_of(pid: int) -> int | None:
    """The first process of the namespaces: the one child of ``unshare``."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(entry.read_text().rpartition(")")[2].split()[1]) == pid:
                return int(entry.parent.name)
    return None


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
