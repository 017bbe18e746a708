"""Dynamic volumes for the default storage class: one folder a claim, shared by every pod of the one node.

A stand-in for a real provisioner. That several pods may write one volume holds trivially here; it does not prove that a storage
class of a real cluster offers it. Folders are open to every user, so an ownership mistake in a pod is not caught.
"""

from __future__ import annotations

import http.client
import json
import shutil
import ssl
import sys
import threading
from pathlib import Path
from typing import Any

from local_cluster.layout import PROVISIONER, STORAGE_CLASS, Layout

Manifest = dict[str, Any]


class Provisioner:
    """Answers pending claims with volumes, and released volumes with their removal."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.tls = ssl.create_default_context(cafile=layout.certificate("ca.crt"))
        self.tls.load_cert_chain(layout.certificate("provisioner.crt"), layout.certificate("provisioner.key"))

    def connect(self, timeout: float | None = 30) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", self.layout.port, context=self.tls, timeout=timeout)

    def watch(self, path: str) -> None:
        """Act on every object of a collection now and whenever it changes, until the process ends."""
        while True:
            try:
                self.follow(path)
            except (OSError, http.client.HTTPException, ValueError) as error:
                print(f"watch of {path} ended: {error!r}", flush=True)
                threading.Event().wait(0.5)

    def follow(self, path: str) -> None:
        """One watch, until the server ends it. At version 0 it begins with every object that exists.

        Without a version too, but only once the server has seen all that etcd had by then, and this etcd does not tell it that on demand:
        where nothing else is written it gives up after 3 seconds, every time.
        """
        connection = self.connect(timeout=None)
        connection.request("GET", f"{path}?watch=true&resourceVersion=0")
        for line in connection.getresponse():
            event = json.loads(line)
            if event["type"] in ("ADDED", "MODIFIED"):
                self.act(path, event["object"])

    def act(self, path: str, item: Manifest) -> None:
        if path.endswith("persistentvolumeclaims"):
            if (
                item["spec"].get("storageClassName") == STORAGE_CLASS
                and not item["spec"].get("volumeName")
                and not item["metadata"].get("deletionTimestamp")
            ):
                self.provide(item)
        elif item["spec"].get("storageClassName") == STORAGE_CLASS and item.get("status", {}).get("phase") == "Released":
            shutil.rmtree(item["spec"]["hostPath"]["path"], ignore_errors=True)
            print(
                "delete", item["metadata"]["name"], self.call("DELETE", f"/api/v1/persistentvolumes/{item['metadata']['name']}"), flush=True
            )

    def provide(self, claim: Manifest) -> None:
        metadata = claim["metadata"]
        name = f"pvc-{metadata['uid']}"
        folder = self.layout.path("volumes", f"{metadata['namespace']}-{metadata['name']}-{metadata['uid'][:8]}")
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)
        reference = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        }
        spec = {
            "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]},
            "accessModes": claim["spec"]["accessModes"],
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": STORAGE_CLASS,
            "claimRef": reference,
            "hostPath": {"path": str(folder), "type": "Directory"},
        }
        annotations = {"pv.kubernetes.io/provisioned-by": PROVISIONER}
        volume = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name, "annotations": annotations}, "spec": spec}
        print("create", name, self.call("POST", "/api/v1/persistentvolumes", volume), flush=True)

    def call(self, method: str, path: str, body: Manifest | None = None) -> int:
        connection = self.connect()
        connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status


def main(state: str) -> None:
    provisioner = Provisioner(Layout.load(Path(state)))
    threading.Thread(target=provisioner.watch, args=("/api/v1/persistentvolumes",), daemon=True).start()
    provisioner.watch("/api/v1/persistentvolumeclaims")


if __name__ == "__main__":
    main(sys.argv[1])
