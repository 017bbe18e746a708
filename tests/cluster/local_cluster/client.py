"""A cluster as a test sees it: kubectl, watches with deadlines, identities. Works on any cluster that a kubeconfig names."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from local_cluster.certificates import kubeconfig

Manifest = dict[str, Any]
Predicate = Callable[[Manifest], bool]


class Cluster:
    """Client of one cluster through one kubeconfig.

    ``cache`` is where kubectl and helm keep which kinds the cluster has. By default they keep that by address, and another cluster may have
    had the same one an hour ago.
    """

    def __init__(self, kubeconfig_path: str | Path, kubectl: str = "kubectl", *, cache: Path | None = None) -> None:
        self.kubeconfig = Path(kubeconfig_path)
        self.kubectl_program = kubectl
        self.cache = cache
        self.environment = {**os.environ, **({"KUBECACHEDIR": str(cache)} if cache else {})}

    def kubectl(
        self, *arguments: str, namespace: str | None = None, check: bool = True, stdin: str | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl. With ``check`` a failure raises an AssertionError that shows what it said."""
        argv, environment = self._argv(namespace, arguments), self.environment
        done = subprocess.run(argv, env=environment, input=stdin, capture_output=True, text=True, check=False, timeout=timeout)
        if check and done.returncode:
            raise AssertionError(f"kubectl {' '.join(arguments)} exited {done.returncode}: {done.stderr.strip()}")
        return done

    def _argv(self, namespace: str | None, arguments: tuple[str, ...]) -> list[str]:
        return [self.kubectl_program, "--kubeconfig", str(self.kubeconfig), *(["--namespace", namespace] if namespace else []), *arguments]

    def apply(self, *objects: Manifest, namespace: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Server-side apply."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        return self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", namespace=namespace, check=check, stdin=text)

    def get(self, *arguments: str, namespace: str | None = None) -> Manifest:
        """``kubectl get`` as JSON."""
        found: Manifest = json.loads(self.kubectl("get", *arguments, "-o", "json", namespace=namespace).stdout)
        return found

    def watch(self, resource: str, *arguments: str, namespace: str | None = None, timeout: float = 60) -> Iterator[tuple[str, Manifest]]:
        """Events ``(ADDED | MODIFIED | DELETED, object)``, existing objects first, until the deadline. A cut watch is opened again."""
        deadline = time.monotonic() + timeout
        command = self._argv(namespace, ("get", resource, *arguments, "--watch", "--output-watch-events", "-o", "json"))
        while (left := deadline - time.monotonic()) > 0:
            process = subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            timer = threading.Timer(left, process.kill)
            timer.start()
            try:
                yield from _events(process)
            finally:
                timer.cancel()
                process.kill()
                process.wait()

    def wait(self, resource: str, name: str, until: Predicate, *, namespace: str | None = None, timeout: float = 60) -> Manifest:
        """The object, as soon as ``until`` holds for it; AssertionError with its last state otherwise. It need not exist yet."""
        last: Manifest | None = None
        for kind, item in self.watch(resource, "--field-selector", f"metadata.name={name}", namespace=namespace, timeout=timeout):
            last = item
            if kind != "DELETED" and until(item):
                return item
        state = json.dumps((last or {}).get("status"), indent=1)
        raise AssertionError(f"{resource}/{name} in {namespace}: not as wanted after {timeout:.0f} s; last status: {state}")

    def wait_condition(
        self, resource: str, name: str, condition: str, *, status: str = "True", namespace: str | None = None, timeout: float = 60
    ) -> Manifest:
        """Wait for ``status.conditions[type=condition].status``."""
        return self.wait(resource, name, has_condition(condition, status), namespace=namespace, timeout=timeout)

    def wait_gone(self, resource: str, name: str, *, namespace: str | None = None, timeout: float = 60) -> None:
        """Wait until the object does not exist."""
        self.kubectl("wait", "--for=delete", f"{resource}/{name}", f"--timeout={timeout:.0f}s", namespace=namespace, timeout=timeout + 10)

    def service_account_kubeconfig(self, name: str, namespace: str, folder: Path) -> Cluster:
        """The cluster as a service account sees it, by a token that lives an hour."""
        token = self.kubectl("create", "token", name, "--duration=1h", namespace=namespace).stdout.strip()
        mine = yaml.safe_load(self.kubeconfig.read_text())
        path = folder / f"{namespace}-{name}.kubeconfig"
        content = yaml.safe_load(kubeconfig("", b"", {"token": token}, namespace))
        content["clusters"][0]["cluster"] = mine["clusters"][0]["cluster"]
        path.write_text(yaml.safe_dump(content))
        return Cluster(path, self.kubectl_program, cache=self.cache)

    @contextlib.contextmanager
    def port_forward(self, target: str, port: int, *, namespace: str) -> Iterator[str]:
        """``kubectl port-forward`` on a free local port; yields the URL."""
        argv = self._argv(namespace, ("port-forward", "--address", "127.0.0.1", target, f":{port}"))
        options: dict[str, Any] = {"env": self.environment, "stdout": subprocess.PIPE, "text": True}
        with tempfile.TemporaryFile() as errors, subprocess.Popen(argv, stderr=errors, **options) as process:
            try:
                line = process.stdout.readline() if process.stdout else ""
                if "Forwarding from" not in line:
                    errors.seek(0)
                    raise AssertionError(f"port-forward to {target} failed: {errors.read().decode()}")
                yield f"http://{line.split()[2]}"
            finally:
                process.kill()

    def describe_failure(self, namespace: str) -> str:
        """What a person wants to see of a namespace in which a test failed."""
        commands = [("get", "all,pvc", "-o", "wide"), ("get", "events", "--sort-by=.lastTimestamp"), ("describe", "pods")]
        parts = [self.kubectl(*command, namespace=namespace, check=False).stdout for command in commands]
        pods = self.kubectl("get", "pods", "-o", "name", namespace=namespace, check=False).stdout.split()
        logs = ("logs", "--all-containers", "--tail=100")
        parts += [f"--- {pod}\n" + self.kubectl(*logs, pod, namespace=namespace, check=False).stdout for pod in pods]
        return "\n".join(parts)


def has_condition(condition: str, status: str = "True") -> Predicate:
    """Whether an object's status carries the condition. The conditions of a definition that is not looked at yet are null."""
    return lambda item: any(c["type"] == condition and c["status"] == status for c in item.get("status", {}).get("conditions") or [])


def _events(process: subprocess.Popen[str]) -> Iterator[tuple[str, Manifest]]:
    """kubectl writes one JSON document after another, on one line each or indented, by its version."""
    text = ""
    for line in process.stdout or ():
        text += line
        try:
            event = json.loads(text)
        except ValueError:
            continue
        text = ""
        yield event["type"], event["object"]


def environment_kubeconfig() -> Path | None:
    """The other cluster that ``STEERLM_TEST_KUBECONFIG`` names."""
    path = os.environ.get("STEERLM_TEST_KUBECONFIG")
    return Path(path) if path else None
