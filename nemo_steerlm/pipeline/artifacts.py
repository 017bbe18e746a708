"""A pipeline's work directory: what each stage left there, and the ``_SUCCESS.json`` that says it is whole.

``W/<stage>/_SUCCESS.json`` is written last, by rename. A stage whose input hash it holds is not run again, whoever ran it.
``W/<stage>/_RUNNING.json`` holds the hash of a run that began: the same hash continues it, another one starts from an empty folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from nemo_steerlm.core.errors import TryAgainError, UsageError
from nemo_steerlm.core.files import atomic_write, file_digest
from nemo_steerlm.pipeline import names
from nemo_steerlm.pipeline.stages import MODEL_FOLDER, ModelRole, Stage

SUCCESS = "_SUCCESS.json"
RUNNING = "_RUNNING.json"


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """One output of a stage."""

    digest: str
    bytes: int
    records: int | None = None
    """Lines, where it is a ``.jsonl`` file."""


class Success(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a finished stage wrote."""

    stage: str
    input_hash: str
    outputs: dict[str, Output]
    metrics: dict[str, Any] = {}
    versions: dict[str, str] = {}
    seconds: float = 0.0

    def digests(self) -> dict[str, str]:
        """Output name to digest: what later stages hash."""
        return {name: output.digest for name, output in self.outputs.items()}


class WorkDirectory:
    """The folder ``W`` of one pipeline."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()

    def folder(self, stage: str) -> Path:
        """The folder of one stage."""
        return self.path / stage

    def model(self, role: ModelRole) -> Path | None:
        """The exported model of the last round that has one, or None."""
        folders = (self.folder(name) / MODEL_FOLDER for name in names.trainings(role))
        return next((folder for folder in folders if folder.is_dir()), None)

    def success(self, stage: str) -> Success | None:
        """What the stage left if it finished and its outputs are still there, else None."""
        folder = self.folder(stage)
        try:
            success = msgspec.json.decode((folder / SUCCESS).read_bytes(), type=Success)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise UsageError(f"{folder / SUCCESS}: {error}; remove the folder to run the stage again") from error
        whole = all((folder / name).exists() for name in success.outputs)
        return success if whole else None

    def begin(self, stage: str, input_hash: str) -> Path:
        """The stage's folder, ready to write: kept where the same work was interrupted, emptied where it was other work."""
        folder = self.folder(stage)
        # Shards, and nodes that train together, begin side by side: one of them empties the folder, the others find it theirs.
        with self.lock(f"{stage}.begin"):
            self._begin(folder, input_hash)
        return folder

    @staticmethod
    def _begin(folder: Path, input_hash: str) -> None:
        marker = folder / RUNNING
        started = input_hash if not any(folder.glob("[!.]*")) else None
        with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
            started = msgspec.json.decode(marker.read_bytes()).get("inputHash")
        if started != input_hash:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SUCCESS).unlink(missing_ok=True)
        with atomic_write(marker) as file:
            file.write(msgspec.json.encode({"inputHash": input_hash}).decode() + "\n")

    @contextlib.contextmanager
    def lock(self, stage: str, *, shared: bool = False, wait: bool = True) -> Iterator[int]:
        """Hold the stage: a second process waits until the first and its children have ended. Yields the file descriptor.

        ``shared`` is for shards, which write side by side. Raises TryAgainError where it is held and ``wait`` is False.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / f".{stage}.lock").open("w") as file:
            mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            try:
                fcntl.flock(file, mode if wait else mode | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise TryAgainError(f"{self.path}: another process is running this pipeline here") from error
            yield file.fileno()

    def forget(self, stage: str) -> None:
        """Remove what the stage left, so that it runs again from the beginning."""
        shutil.rmtree(self.folder(stage), ignore_errors=True)

    def log(self, name: str) -> Path:
        """The log file of a stage or of one of its servers."""
        return self.path / "logs" / f"{name}.log"

    def finish(self, stage: Stage, input_hash: str, *, metrics: Mapping[str, Any], versions: Mapping[str, str], seconds: float) -> Success:
        """Write ``_SUCCESS.json``. Raises UsageError where the stage did not write one of its outputs."""
        folder = self.folder(stage.name)
        missing = [name for name in stage.outputs if not (folder / name).exists()]
        if missing:
            raise UsageError(f"stage {stage.name} ended without writing {', '.join(missing)}")
        success = Success(
            stage=stage.name,
            input_hash=input_hash,
            outputs={name: _describe(folder / name) for name in stage.outputs},
            metrics=dict(metrics),
            versions=dict(versions),
            seconds=round(seconds, 3),
        )
        with atomic_write(folder / SUCCESS) as file:
            file.write(msgspec.json.format(msgspec.json.encode(success), indent=2).decode() + "\n")
        (folder / RUNNING).unlink(missing_ok=True)
        return success

    def digest(self, path: Path) -> str:
        """Digest of an input file or folder, remembered by size and modification time so that 140 GB are read once."""
        cache_file = self.path / ".digests.json"
        cache: dict[str, Any] = {}
        with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
            cache = msgspec.json.decode(cache_file.read_bytes())
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        stamp = [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
        known = cache.get(str(path))
        if known and known["stamp"] == stamp:
            return str(known["digest"])
        found = path_digest(path)
        with atomic_write(cache_file) as file:
            file.write(msgspec.json.encode({**cache, str(path): {"stamp": stamp, "digest": found}}).decode())
        return found


def path_digest(path: Path) -> str:
    """``sha256:…`` of a file, or of a folder's names and contents."""
    if not path.is_dir():
        return file_digest(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{file_digest(file)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _describe(path: Path) -> Output:
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    records = None
    if path.suffix == ".jsonl":
        with path.open("rb") as file:
            records = sum(1 for _ in file)
    return Output(digest=path_digest(path), bytes=sum(os.path.getsize(f) for f in files), records=records)
