"""Images without a registry: a skeleton of mount points and links, over which every container sees this machine's own environment.

The Python environment under test is bound in below the API, by containerd's base runtime spec, so pods keep their shipped form
and their security context. What that leaves untested is the contents of the images that are shipped.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

from local_cluster.layout import PAUSE_IMAGE

REPOSITORY = Path(__file__).resolve().parents[3]
ENVIRONMENT = "/opt/venv"
SOURCE = "/opt/src"
DATA = "/opt/data"
USER = 1000
SYSTEM = ("bin", "sbin", "lib", "lib64")
SCRIPTS_OF = ("nemo_steerlm", "torch", "kopf")


def version() -> str:
    """The package's version: the tag under which the operator's defaults name the images."""
    return importlib.metadata.version("nemo_steerlm")


IMAGE_VARIABLES = {"worker": "STEERLM_TEST_WORKER_IMAGE", "operator": "STEERLM_TEST_OPERATOR_IMAGE"}


def image(role: str) -> str:
    """``NAME:TAG`` of the worker's or the operator's image: this node's, or what the environment says another cluster can pull."""
    return os.environ.get(IMAGE_VARIABLES[role]) or f"nemo-steerlm-{role}:{version()}"


def default_images() -> list[str]:
    """The names under which the skeleton is imported. A bare name means ``docker.io/library`` to the runtime."""
    return [f"docker.io/library/{name}:{version()}" for name in ("nemo-steerlm-worker", "nemo-steerlm-operator")]


def default_mounts() -> dict[str, str]:
    """What every container sees of this machine: the system's libraries, the Python environment and the source, all read-only."""
    wanted = {
        "/usr": "/usr",
        # Real folders where the system has not merged them into /usr.
        **{f"/{name}": f"/{name}" for name in SYSTEM if not Path("/", name).is_symlink()},
        sys.base_prefix: sys.base_prefix,
        _site_packages(): f"{ENVIRONMENT}/lib/{_python_name()}/site-packages",
        str(REPOSITORY / "nemo_steerlm"): f"{SOURCE}/nemo_steerlm",
        str(REPOSITORY / "k8s/steerlm_operator"): f"{SOURCE}/steerlm_operator",
        str(REPOSITORY / "examples"): f"{SOURCE}/examples",
        str(REPOSITORY / "tests/data"): DATA,
    }
    return {source: target for source, target in wanted.items() if Path(source).exists()}


def _site_packages() -> str:
    return next(path for path in sys.path if path.endswith(("site-packages", "dist-packages")))


def _python_name() -> str:
    return f"python{sys.version_info.major}.{sys.version_info.minor}"


def base_runtime_spec(default: dict[str, Any], mounts: dict[str, str]) -> dict[str, Any]:
    """containerd's default OCI spec with the mounts added, and without what would hide or restrict them."""
    binds = [{"type": "bind", "source": source, "destination": target, "options": ["rbind", "ro"]} for source, target in mounts.items()]
    process = {key: value for key, value in default["process"].items() if key != "rlimits"}
    return {**default, "process": process, "mounts": [mount for mount in default["mounts"] if mount["destination"] != "/run"] + binds}


def write_archive(path: Path, names: list[str], pause: Path) -> None:
    """A docker-archive with the skeleton under every name, and the static ``pause`` program as the image of sandboxes.

    Sandboxes do not see what the base runtime spec binds in: their program needs no other file.
    """
    images = [
        (_skeleton(), {"Cmd": [f"{ENVIRONMENT}/bin/python"], "User": f"{USER}:{USER}", "WorkingDir": "/workspace"}, names),
        (_sandbox(pause), {"Entrypoint": ["/pause"]}, [PAUSE_IMAGE]),
    ]
    manifest = []
    with tarfile.open(path, "w") as archive:
        for layer, run, tags in images:
            digest = hashlib.sha256(layer).hexdigest()
            config = _config(digest, run)
            files = {"Config": f"{hashlib.sha256(config).hexdigest()}.json", "Layers": [f"{digest}.tar"]}
            _add_file(archive, f"{digest}.tar", layer)
            _add_file(archive, str(files["Config"]), config)
            manifest.append({**files, "RepoTags": tags})
        _add_file(archive, "manifest.json", json.dumps(manifest).encode())


def _config(layer_digest: str, run: dict[str, Any]) -> bytes:
    environment = {
        "PATH": f"{ENVIRONMENT}/bin:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": SOURCE,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
    }
    settings = {"Env": [f"{key}={value}" for key, value in environment.items()], **run}
    content = {
        "architecture": "amd64",
        "os": "linux",
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
    }
    return json.dumps(content).encode()


def _sandbox(pause: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        _add_file(archive, "pause", pause.read_bytes(), mode=0o755)
    return buffer.getvalue()


def _skeleton() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("etc", "usr", "proc", "sys", "dev", "run", "var", "opt", "root", "home", "opt/venv", "opt/venv/bin", "opt/src"):
            _add_folder(archive, name)
        for name, owner in (("tmp", 0), ("var/tmp", 0), ("workspace", USER), ("home/steerlm", USER)):
            _add_folder(archive, name, mode=0o1777 if name.endswith("tmp") else 0o755, owner=owner)
        for name in SYSTEM:
            if Path("/", name).is_symlink():
                _add_link(archive, name, f"usr/{name}")
            else:
                _add_folder(archive, name)
        _add_file(archive, "etc/passwd", f"root:x:0:0::/root:/bin/sh\nsteerlm:x:{USER}:{USER}::/home/steerlm:/bin/sh\n".encode())
        _add_file(archive, "etc/group", f"root:x:0:\nsteerlm:x:{USER}:\n".encode())
        _add_file(archive, "etc/nsswitch.conf", b"hosts: files dns\n")
        base = os.path.realpath(sys.executable)
        _add_file(archive, "opt/venv/pyvenv.cfg", f"home = {Path(base).parent}\ninclude-system-site-packages = false\n".encode())
        for name in ("python", "python3", _python_name()):
            _add_link(archive, f"opt/venv/bin/{name}", base)
        for name, script in _console_scripts().items():
            _add_file(archive, f"opt/venv/bin/{name}", script.encode(), mode=0o755)
    return buffer.getvalue()


def _console_scripts() -> dict[str, str]:
    """The environment's commands with this image's interpreter in their first line, as installing there would write them."""
    scripts = {}
    for distribution in SCRIPTS_OF:
        try:
            entries = importlib.metadata.distribution(distribution).entry_points
        except importlib.metadata.PackageNotFoundError:
            continue
        for entry in entries.select(group="console_scripts"):
            scripts[entry.name] = (
                f"#!{ENVIRONMENT}/bin/python\nimport sys\nfrom {entry.module} import {entry.attr}\nsys.exit({entry.attr}())\n"
            )
    return scripts


def _add_folder(archive: tarfile.TarFile, name: str, mode: int = 0o755, owner: int = 0) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.uid, member.gid = tarfile.DIRTYPE, mode, owner, owner
    archive.addfile(member)


def _add_file(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), mode
    archive.addfile(member, io.BytesIO(content))


def _add_link(archive: tarfile.TarFile, name: str, target: str) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = tarfile.SYMTYPE, target, 0o777
    archive.addfile(member)
