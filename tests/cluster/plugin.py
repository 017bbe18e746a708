"""``kubectl steerlm`` as people run it: kubectl finds the plugin in PATH."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from local_cluster.client import Cluster


class Plugin:
    """``steerlm(*arguments)`` in one namespace of one cluster."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        programs = [str(Path(sys.executable).parent), str(Path(cluster.kubectl_program).parent), cluster.environment["PATH"]]
        self.environment = cluster.environment | {"PATH": ":".join(programs), "KUBECONFIG": str(cluster.kubeconfig)}
        self.namespace = namespace

    def command(self, name: str, *arguments: str) -> list[str]:
        """The command line."""
        return ["kubectl", "steerlm", name, "--namespace", self.namespace, *arguments]

    def __call__(self, name: str, *arguments: str) -> str:
        """What it prints. It has to end well."""
        done = self._run(name, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, name: str, *arguments: str) -> tuple[int, str]:
        """The exit code and what it says on stderr. It has to fail, and not by a traceback."""
        done = self._run(name, *arguments)
        assert done.returncode
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr

    def start(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        """A subcommand that goes on until it is ended."""
        options: dict[str, Any] = {"env": self.environment, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(self.command(name, *arguments), start_new_session=True, **options)

    def _run(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(name, *arguments), env=self.environment, capture_output=True, text=True, check=False)
