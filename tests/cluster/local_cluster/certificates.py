"""The cluster's certificate authority, the certificates of its components, and kubeconfig files that carry them."""

from __future__ import annotations

import base64
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml
from local_cluster.errors import ClusterError

SECTIONS = """[req]
distinguished_name = subject
prompt = no
x509_extensions = extensions
[subject]
{subject}
[extensions]
basicConstraints = critical, CA:{authority}
keyUsage = critical, {usage}
{extra}
"""


@dataclass(frozen=True)
class Identity:
    """A certificate to issue. ``group`` becomes the organisation, which Kubernetes reads as the user's group."""

    name: str
    user: str
    group: str = ""
    addresses: tuple[str, ...] = ()


def identities(node: str, node_address: str, service_address: str) -> list[Identity]:
    """Everyone who speaks TLS in the cluster."""
    services = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
    server = [*(f"DNS:{name}" for name in (*services, "localhost")), *(f"IP:{ip}" for ip in ("127.0.0.1", node_address, service_address))]
    return [
        Identity("kube-apiserver", "kube-apiserver", addresses=tuple(server)),
        Identity("kubelet-serving", f"system:node:{node}", "system:nodes", (f"DNS:{node}", f"IP:{node_address}", "IP:127.0.0.1")),
        Identity("admin", "kubernetes-admin", "system:masters"),
        Identity("kubelet-client", "kube-apiserver-kubelet-client", "system:masters"),
        Identity("kubelet", f"system:node:{node}", "system:nodes"),
        Identity("kube-controller-manager", "system:kube-controller-manager"),
        Identity("kube-scheduler", "system:kube-scheduler"),
        Identity("kube-proxy", "system:kube-proxy"),
        Identity("coredns", "system:coredns"),
        Identity("provisioner", "system:provisioner"),
    ]


def issue(folder: Path, wanted: list[Identity]) -> None:
    """Write ``ca.{crt,key}``, ``service-account.{pub,key}`` and ``NAME.{crt,key}`` for each identity, valid for a week."""
    folder.mkdir(parents=True)
    _certificate(folder, "ca", "CN = steerlm-test-ca", "TRUE", "keyCertSign, cRLSign, digitalSignature", "", signer=False)
    _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", folder / "service-account.key")
    _openssl("pkey", "-in", folder / "service-account.key", "-pubout", "-out", folder / "service-account.pub")
    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(lambda identity: issue_one(folder, identity), wanted))


def issue_one(folder: Path, identity: Identity) -> None:
    """Write ``NAME.{crt,key}`` beside the authority."""
    subject = "\n".join([*([f"O = {identity.group}"] if identity.group else []), f"CN = {identity.user}"])
    extra = "extendedKeyUsage = serverAuth, clientAuth"
    if identity.addresses:
        extra += f"\nsubjectAltName = {', '.join(identity.addresses)}"
    _certificate(folder, identity.name, subject, "FALSE", "digitalSignature", extra, signer=True)


def _certificate(folder: Path, name: str, subject: str, authority: str, usage: str, extra: str, *, signer: bool) -> None:
    settings = folder / f"{name}.conf"
    settings.write_text(SECTIONS.format(subject=subject, authority=authority, usage=usage, extra=extra))
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", folder / f"{name}.key"]
    by = ["-CA", folder / "ca.crt", "-CAkey", folder / "ca.key"] if signer else []
    _openssl("req", "-new", "-x509", "-config", settings, *key, *by, "-days", "7", "-sha256", "-out", folder / f"{name}.crt")
    settings.unlink()


def _openssl(*argv: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, argv)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"openssl {argv[0]} failed: {done.stderr.strip()}")


def kubeconfig(server: str, authority: bytes, user: dict[str, str], namespace: str = "default") -> str:
    """A kubeconfig with everything inline. ``user`` is the AuthInfo: certificate data, or a token."""
    context = {"cluster": "steerlm-test", "user": "user", "namespace": namespace}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "steerlm-test", "cluster": {"server": server, "certificate-authority-data": encoded(authority)}}],
        "users": [{"name": "user", "user": user}],
        "contexts": [{"name": "steerlm-test", "context": context}],
        "current-context": "steerlm-test",
    }
    return yaml.safe_dump(content, sort_keys=False)


def certificate_kubeconfig(folder: Path, name: str, server: str) -> str:
    """The kubeconfig of one issued identity."""
    user = {
        "client-certificate-data": encoded((folder / f"{name}.crt").read_bytes()),
        "client-key-data": encoded((folder / f"{name}.key").read_bytes()),
    }
    return kubeconfig(server, (folder / "ca.crt").read_bytes(), user)


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()
