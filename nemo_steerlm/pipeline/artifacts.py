"""A pipeline's work directory: what each stage left there, and the ``_SUCCESS.json`` that says it is whole.

``W/<stage>/_SUCCESS.json`` is written last, by rename. A stage whose input hash it holds is not run again, whoever ran it.
``W/<stage>/_RUNNING.json`` holds the hash of a run that began: the same hash continues it. What other fields or inputs led to is removed;
what cannot be told to be other work, such as that of another version, is moved to ``W/superseded``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from nemo_steerlm.core.errors import ConfigError, TryAgainError, UsageError
from nemo_steerlm.core.files import atomic_write, file_digest
from nemo_steerlm.core.objectives import ModelKind
from nemo_steerlm.pipeline import registry
from nemo_steerlm.pipeline.stages import MODEL_FOLDER, Stage

SUCCESS = "_SUCCESS.json"
RUNNING = "_RUNNING.json"
SUPERSEDED = "superseded"
"""Where folders go whose work cannot be told to be other work than the wanted one."""
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
WHAT_TO_MOUNT = "mount Lustre with -o flock (not noflock), NFS of version 4 or with a lock daemon (not -o nolock)"

logger = logging.getLogger(__name__)


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
    identity: dict[str, Any] = {}
    """What ``input_hash`` is the hash of; empty in what version 0.1.0 wrote."""
    metrics: dict[str, Any] = {}
    versions: dict[str, str] = {}
    seconds: float = 0.0

    def digests(self) -> dict[str, str]:
        """Output name to digest: what later stages hash."""
        return {name: output.digest for name, output in self.outputs.items()}


class Begun(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The work that a stage's folder holds, if it has not finished."""

    input_hash: str
    identity: dict[str, Any] = {}
    """What it is the hash of; empty in what version 0.1.0 wrote."""


def served_model(path: Path) -> Path:
    """The model that a server of ``path`` serves: ``path`` itself, or the last steer model of the work directory that it is.

    Raises:
        UsageError: If there is nothing at ``path``, or it is the work directory of a pipeline without a steer model.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    if path.is_file():
        return path
    work = WorkDirectory(path)
    if steer := work.model("steer"):
        return steer
    if value := work.model("value"):
        raise UsageError(f"{path}: the pipeline has no steer model yet; run it to its end, or serve {value}")
    return path


class WorkDirectory:
    """The folder ``W`` of one pipeline."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()

    def folder(self, stage: str) -> Path:
        """The folder of one stage."""
        return self.path / stage

    def model(self, role: ModelKind) -> Path | None:
        """The exported model that the evaluation found best; before there is one, that of the last round; or None."""
        evaluated = (registry.EVALUATE,) if role == "steer" and self.success(registry.EVALUATE) else ()
        folders = (self.folder(name) / MODEL_FOLDER for name in (*evaluated, *registry.trainings(role)))
        return next((folder.resolve() for folder in folders if folder.is_dir()), None)

    def link_best(self, stage: str) -> None:
        """Let ``evaluate``'s model be that of the training ``stage``: what a server takes that nobody tells otherwise."""
        link = self.folder(registry.EVALUATE) / MODEL_FOLDER
        temporary = link.with_name(f".{MODEL_FOLDER}.new")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(Path("..") / stage / MODEL_FOLDER)  # relative: the work directory may be mounted elsewhere
        temporary.replace(link)

    def success(self, stage: str) -> Success | None:
        """What the stage left if it finished and its outputs are still there, else None."""
        success = self._success(stage)
        folder = self.folder(stage)
        return success if success and all((folder / name).exists() for name in success.outputs) else None

    def _success(self, stage: str) -> Success | None:
        folder = self.folder(stage)
        try:
            return msgspec.json.decode((folder / SUCCESS).read_bytes(), type=Success)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise UsageError(f"{folder / SUCCESS}: {error}; remove the folder to run the stage again") from error

    def begun(self, stage: str) -> Begun | None:
        """The work that was begun and not finished in the stage's folder, or None."""
        try:
            return msgspec.json.decode((self.folder(stage) / RUNNING).read_bytes(), type=Begun)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def begin(self, stage: str, wanted: Begun, *, equal: Collection[str] = (), other: Callable[[Mapping[str, Any]], Sequence[str]]) -> Path:
        """The stage's folder, ready to write.

        Args:
            stage: The stage.
            wanted: The work to be done.
            equal: Other hashes of the same work: an earlier version's.
            other: What tells the identity of the work in the folder from the wanted one: fields and inputs, as phrases.

        Returns:
            The folder: kept if the same work was interrupted there, else empty. What was there is removed if a field or an input of it was
            another, and moved to ``superseded`` if that cannot be told: an interrupted training may have taken days.
        """
        folder = self.folder(stage)
        # Shards, and nodes that train together, begin side by side: one of them empties the folder, the others find it theirs.
        with self.lock(f"{stage}.begin"):
            if any(folder.glob("[!.]*")):
                self._make_room(stage, (wanted.input_hash, *equal), other)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / SUCCESS).unlink(missing_ok=True)
            with atomic_write(folder / RUNNING) as file:
                file.write(msgspec.json.encode(wanted).decode() + "\n")
        return folder

    def _make_room(self, stage: str, hashes: Collection[str], other: Callable[[Mapping[str, Any]], Sequence[str]]) -> None:
        folder = self.folder(stage)
        begun, finished = self.begun(stage), self._success(stage)
        if begun and begun.input_hash in hashes:
            return
        if not begun and finished and finished.input_hash in hashes:  # somebody removed outputs of it
            shutil.rmtree(folder)
            return
        there = begun or finished
        if there and there.identity and (changed := other(there.identity)):
            logger.warning("%s: removing what is there, it is of other work: %s", folder, "; ".join(changed))
            shutil.rmtree(folder)
            return
        taken = (self.path / SUPERSEDED / f"{stage}-{number}" for number in itertools.count(1))
        aside = next(path for path in taken if not path.exists())
        aside.parent.mkdir(exist_ok=True)
        logger.warning("%s: what is there was made by other rules, or by something else; it is moved to %s", folder, aside)
        folder.rename(aside)

    @contextlib.contextmanager
    def lock(self, stage: str, *, shared: bool = False, wait: bool = True) -> Iterator[int]:
        """Hold the stage: a second process waits until the first and its children have ended. Yields the file descriptor.

        ``shared`` is for shards, which write side by side. Raises TryAgainError if it is held and ``wait`` is False,
        ConfigError if the file system has no locks.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        # For reading and writing: on NFS a lock is a byte range's, a shared one needs the right to read and an exclusive one to write.
        with (self.path / f".{stage}.lock").open("a+") as file:
            mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            try:
                fcntl.flock(file, mode if wait else mode | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise TryAgainError(f"{self.path}: another process is running this pipeline here") from error
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                raise ConfigError(f"{self.path}: this file system has no locks ({error.strerror}); {WHAT_TO_MOUNT}") from error
            yield file.fileno()

    def forget(self, stage: str) -> None:
        """Remove what the stage left, so that it runs again from the beginning."""
        shutil.rmtree(self.folder(stage), ignore_errors=True)

    def log(self, name: str) -> Path:
        """The log file of a stage or of one of its servers."""
        return self.path / "logs" / f"{name}.log"

    def finish(self, stage: Stage, begun: Begun, *, metrics: Mapping[str, Any], versions: Mapping[str, str], seconds: float) -> Success:
        """Write ``_SUCCESS.json``. Raises UsageError where the stage did not write one of its outputs."""
        folder = self.folder(stage.name)
        missing = [name for name in stage.outputs if not (folder / name).exists()]
        if missing:
            raise UsageError(f"stage {stage.name} ended without writing {', '.join(missing)}")
        success = Success(
            stage=stage.name,
            input_hash=begun.input_hash,
            identity=begun.identity,
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
        digest = path_digest(path)
        with atomic_write(cache_file) as file:
            file.write(msgspec.json.encode({**cache, str(path): {"stamp": stamp, "digest": digest}}).decode())
        return digest


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
