"""Where one cluster keeps its files, and the few names and addresses that its parts share."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

NODE = "node-1"
NODE_ADDRESS = "192.168.77.1"
GATEWAY_ADDRESS = "192.168.77.2"
POD_RANGE = "10.244.0.0/24"
SERVICE_RANGE = "10.96.0.0/16"
FIRST_SERVICE_ADDRESS = "10.96.0.1"
STORAGE_CLASS = "steerlm-directory"
PROVISIONER = "steerlm.dev/directory"
PAUSE_IMAGE = "steerlm.local/pause:1"

# Inside the cluster's mount namespace these are fresh tmpfs: what the components write there is gone with them.
PRIVATE = ("/run", "/var/lib", "/var/log")
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"


@dataclass(frozen=True)
class Layout:
    """The settings of one cluster. ``mounts`` maps host paths to where every container sees them, read-only."""

    state: str
    binaries: str
    environment: dict[str, str]
    network_plugins: str
    port: int
    cgroup: str
    node: bool
    images: list[str] = field(default_factory=list)
    mounts: dict[str, str] = field(default_factory=dict)

    def path(self, *parts: str) -> Path:
        return Path(self.state, *parts)

    def program(self, name: str) -> str:
        return str(Path(self.binaries, "bin", name))

    def certificate(self, name: str) -> str:
        return str(self.path("pki", name))

    def kubeconfig(self, name: str) -> str:
        return str(self.path("kubeconfig", name))

    @property
    def server(self) -> str:
        """The API server's address, the same inside and outside."""
        return f"https://127.0.0.1:{self.port}"

    def save(self) -> None:
        self.path("layout.json").write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, state: str | Path) -> Layout:
        return cls(**json.loads(Path(state, "layout.json").read_text()))
