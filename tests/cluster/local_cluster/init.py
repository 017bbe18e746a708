"""PID 1 of the cluster's namespaces: network, mounts, components in order, then supervision, the relay and the control socket.

Called by ``local_cluster.cluster`` under ``unshare`` with the state folder, the descriptor of the listening socket that was bound
outside, and the descriptor of a pipe on which it reports each step as a JSON line, ``ready`` or ``failed`` last.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from local_cluster import components, images
from local_cluster.errors import ClusterError
from local_cluster.layout import CONTAINERD_SOCKET, NODE, PRIVATE, Layout
from local_cluster.supervisor import Component, Supervisor

PATIENCE = 300.0
# The kubelet insists on these values and would write them into the whole machine's kernel: it finds them here instead.
KERNEL_VALUES = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


class Init:
    """The life of one cluster, seen from inside."""

    def __init__(self, layout: Layout, report: Callable[..., None]) -> None:
        self.layout = layout
        self.report = report
        argvs = components.commands(layout)
        if layout.node:
            argvs["provisioner"] = [sys.executable, "-m", "local_cluster.provisioner", layout.state]
        self.supervisor = Supervisor({name: Component(argv, layout.path("log", f"{name}.log")) for name, argv in argvs.items()})
        self.tls = ssl.create_default_context(cafile=layout.certificate("ca.crt"))
        self.tls.load_cert_chain(layout.certificate("admin.crt"), layout.certificate("admin.key"))

    async def start(self) -> None:
        """Bring everything up; returns when a pod could be created.

        Raises:
            ClusterError: a component died or a step took longer than ``PATIENCE``.
        """
        start = self.supervisor.start
        start("etcd")
        start("kube-apiserver")
        importing = asyncio.ensure_future(self._prepare_runtime()) if self.layout.node else None
        await self._until("apiserver ready", self._answers("/readyz"))
        start("kube-controller-manager")
        start("kube-scheduler")
        if importing:
            await importing
            for name in ("kubelet", "kube-proxy"):
                start(name)
        self.layout.path("config", "bootstrap.json").write_text(json.dumps(components.bootstrap_objects()))
        await self._until("bootstrap objects", self._bootstrap)
        if self.layout.node:
            start("coredns")
            start("provisioner")
            await self._until("node ready", self._node_ready)
            await self._until("cluster DNS ready", lambda: _http_ok("127.0.0.1", 8181, "/ready", None))
        await self._until("default service account", self._answers("/api/v1/namespaces/default/serviceaccounts/default"))
        self.supervisor.settled = True

    async def _prepare_runtime(self) -> None:
        self.supervisor.start("containerd")
        await self._until("containerd ready", self._containerd_answers)
        command = ["ctr", "--address", CONTAINERD_SOCKET, "-n", "k8s.io", "images", "import", str(self.layout.path("config", "images.tar"))]
        if status := await self.supervisor.run(command, self.layout.path("log", "import.log")):
            raise ClusterError(f"importing the images failed with {status}: see import.log")
        self.report("images imported")

    async def _containerd_answers(self) -> bool:
        return not await self.supervisor.run(
            ["ctr", "--address", CONTAINERD_SOCKET, "--connect-timeout", "1s", "version"], Path("/dev/null")
        )

    async def _bootstrap(self) -> bool:
        kubectl = [self.layout.program("kubectl"), "--kubeconfig", self.layout.kubeconfig("admin")]
        return not await self.supervisor.run(
            [*kubectl, "apply", "-f", str(self.layout.path("config", "bootstrap.json"))], self.layout.path("log", "bootstrap.log")
        )

    async def _node_ready(self) -> bool:
        status, body = await _request("127.0.0.1", self.layout.port, f"/api/v1/nodes/{NODE}", self.tls)
        conditions = json.loads(body)["status"].get("conditions", []) if status == 200 else []
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)

    def _answers(self, path: str) -> Callable[[], Awaitable[bool]]:
        return lambda: _http_ok("127.0.0.1", self.layout.port, path, self.tls)

    async def _until(self, what: str, check: Callable[[], Awaitable[bool]]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not await check():
            if dead := self.supervisor.dead():
                raise ClusterError(f"{dead[0]} ended while waiting for: {what}")
            if time.monotonic() > deadline:
                raise ClusterError(f"not reached in {PATIENCE:.0f} s: {what}")
            await asyncio.sleep(0.05)
        self.report(what)

    async def control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, one answer: ``{"op": "stop" | "start" | "signal" | "list", "component": NAME, "signal": NUMBER}``."""
        request = json.loads(await reader.readline())
        answer: dict[str, Any] = {}
        try:
            match request["op"]:
                case "start":
                    self.supervisor.start(request["component"])
                case "stop":
                    await self.supervisor.stop(request["component"], request.get("signal", signal.SIGKILL))
                case "signal":
                    self.supervisor.send(request["component"], request["signal"])
            answer = {name: _described(component) for name, component in self.supervisor.components.items()}
        except (KeyError, OSError) as error:
            answer = {"error": repr(error)}
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()
        writer.close()

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection from the machine's loopback to the API server in here."""
        try:
            inside = await asyncio.open_connection("127.0.0.1", self.layout.port)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(_pump(reader, inside[1]), _pump(inside[0], writer))


def _described(component: Component) -> dict[str, int]:
    memory = 0
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{component.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                memory = int(line.split()[1])
    return {"pid": component.pid, "restarts": component.restarts, "rss_kib": memory}


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while block := await reader.read(1 << 16):
            writer.write(block)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
            return
    writer.close()


async def _http_ok(host: str, port: int, path: str, tls: ssl.SSLContext | None) -> bool:
    return (await _request(host, port, path, tls))[0] == 200


async def _request(host: str, port: int, path: str, tls: ssl.SSLContext | None) -> tuple[int, str]:
    """GET; status 0 when nobody answers."""
    try:
        reader, writer = await asyncio.open_connection(host, port, ssl=tls)
        writer.write(f"GET {path} HTTP/1.0\r\nHost: {host}\r\nAccept: application/json\r\n\r\n".encode())
        head, _, body = (await asyncio.wait_for(reader.read(), 5)).decode(errors="replace").partition("\r\n\r\n")
        writer.close()
        return int(head.split()[1]), body
    except (OSError, IndexError, ValueError, asyncio.TimeoutError):
        return 0, ""


def prepare(layout: Layout) -> None:
    """Private folders, network and configuration files: what must stand before the first component.

    Raises:
        ClusterError, OSError, CalledProcessError: the kernel, or what confines this machine, does not allow it.
    """
    socket.sethostname(NODE)
    for folder in PRIVATE:
        _checked(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", folder])
    for folder in ("/run/lock", "/run/netns", "/var/log/containers", "/var/lib/cni", "/var/lib/kubelet"):
        Path(folder).mkdir(parents=True)
    for command in components.network_commands(layout):
        _checked(["ip", *shlex.split(command)])
    for key in ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables"):
        with contextlib.suppress(FileNotFoundError):
            Path("/proc/sys", key).write_text("1")
    for name, text in components.configurations(layout).items():
        layout.path("config", name).write_text(text)
    if layout.node:
        _prepare_node(layout)


def _prepare_node(layout: Layout) -> None:
    _try_kernel()
    for key, value in KERNEL_VALUES.items():
        mine = layout.path("config", key.replace("/", "."))
        mine.write_text(f"{value}\n")
        if Path("/proc/sys", key).exists():
            _checked(["mount", "--bind", str(mine), f"/proc/sys/{key}"])
    layout.path("config", "resolv.conf").touch()
    layout.path("config", "cni").mkdir()
    layout.path("config", "cni", "pods.conflist").write_text(json.dumps(components.pod_network(layout)))
    default = json.loads(subprocess.run(["ctr", "oci", "spec"], check=True, capture_output=True).stdout)
    layout.path("config", "base-spec.json").write_text(json.dumps(images.base_runtime_spec(default, layout.mounts)))


def _try_kernel() -> None:
    """What only pods need of the kernel: it is better to miss it now than as a pod that does not start."""
    for name in ("lower", "upper", "work", "merged"):
        Path("/run/overlay", name).mkdir(parents=True)
    folders = "lowerdir=/run/overlay/lower,upperdir=/run/overlay/upper,workdir=/run/overlay/work"
    _checked(["mount", "-t", "overlay", "-o", folders, "overlay", "/run/overlay/merged"])
    _checked(["umount", "/run/overlay/merged"])
    for command in ("link add bridge0 type bridge", "link del bridge0"):
        _checked(["ip", *shlex.split(command)])
    for command in ("add table ip probe", "add chain ip probe nat { type nat hook prerouting priority 0; }", "delete table ip probe"):
        _checked(["nft", command])


def _checked(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"{' '.join(argv)}: {done.stderr.strip()}")


async def live(layout: Layout, listener: socket.socket, pipe: int) -> None:
    """Start, say how it went, serve until killed."""
    begun = time.monotonic()

    def report(event: str, **more: Any) -> None:
        os.write(pipe, json.dumps({"event": event, "seconds": round(time.monotonic() - begun, 2), **more}).encode() + b"\n")

    try:
        prepare(layout)
    except (ClusterError, OSError, subprocess.CalledProcessError) as error:
        report("unavailable", reason=str(error))
        return
    try:
        report("network and mounts")
        init = Init(layout, report)
        # Accepting connections only later would leave early clients hanging in the backlog.
        await asyncio.start_server(init.relay, sock=listener)
        await init.start()
        await asyncio.start_unix_server(init.control, str(layout.path("control")))
        report("ready")
    except (ClusterError, OSError, subprocess.CalledProcessError) as error:
        report("failed", reason=str(error))
        return
    os.close(pipe)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(live(Layout.load(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])), int(sys.argv[3])))
