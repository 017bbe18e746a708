"""The journal of a labelling run: an append-only file, one checksummed line per record, that survives a kill at any byte.

The first line names the model and options of the labels. Each other line has the record's position in the input and a digest of its text,
so that no label goes to another record. A torn last line is cut off; a line with a wrong checksum is dropped and its record labelled
again. Each line is written to the system at once (a killed process loses none) and synced to the disk once per second.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

import msgspec

from nemo_steerlm.client.labelling import TurnLabel
from nemo_steerlm.core.errors import ConfigError, DataError, TryAgainError, Where

VERSION = 1
SYNC_SECONDS = 1.0


class JournalHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What all labels of a journal have in common."""

    model: str
    turns: str
    languages: bool
    shard: str
    attributes: tuple[str, ...] = ()
    """The schema's names. Empty in journals that were begun before they were written down."""
    version: int = VERSION


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """The labels of one record."""

    at: int
    """Position in the input, from 0, blank lines not counted."""
    digest: str
    labels: tuple[TurnLabel, ...]


def record_digest(raw: bytes) -> str:
    """A digest of one input line, white space at its ends left out."""
    return hashlib.blake2b(raw.strip(), digest_size=12).hexdigest()


class Journal:
    """An open journal. A context manager that holds the file's lock: a second process that wants it gets TryAgainError."""

    def __init__(self, path: Path, header: JournalHeader, *, restart: bool = False) -> None:
        """Open or create ``path``.

        Raises:
            ConfigError: If it belongs to another model or other options, unless ``restart`` is given.
            TryAgainError: If another process holds its lock.
        """
        self.path = path
        self.header = header
        self._places: dict[int, tuple[int, int]] = {}
        """Offset and length of each position's line."""
        self._synced = time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _locked(path)
        with contextlib.ExitStack() as stack:
            stack.callback(self._file.close)
            if restart:
                self._file.truncate(0)
            self._read()
            stack.pop_all()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            os.fsync(self._file.fileno())
        self._file.close()

    def __contains__(self, position: int) -> bool:
        return position in self._places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def positions(self) -> Iterator[int]:
        """The positions of all labelled records, in no order."""
        return iter(self._places)

    def get(self, position: int) -> Entry | None:
        """The entry of the record at ``position``, if it has one."""
        return msgspec.json.decode(self._line_of(position)[9:], type=Entry) if position in self._places else None

    def _line_of(self, position: int) -> bytes:
        start, length = self._places[position]
        return os.pread(self._file.fileno(), length, start)

    def check(self, position: int, digest: str, where: Where) -> bool:
        """Whether the record at ``position`` is labelled.

        Raises:
            DataError: If it was another record when it was labelled.
        """
        entry = self.get(position)
        if entry and entry.digest != digest:
            raise DataError(
                f"the record differs from the one that {self.path} has labels for",
                where=where,
                instead="bring the old input back, or give --restart to label anew",
            )
        return entry is not None

    def append(self, entry: Entry) -> None:
        """Add one entry.

        Raises:
            TryAgainError: If the disk does not take the whole line; the journal then ends before it.
        """
        line = _line(msgspec.json.encode(entry))
        self._places[entry.at] = (self._write(line), len(line))
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def remove(self) -> None:
        """Delete the file, once its labels are in the output."""
        self.path.unlink(missing_ok=True)

    def compact(self) -> None:
        """Rewrite the file without dropped and duplicate lines, atomically. The lock moves to the new file.

        Raises:
            TryAgainError: If the file cannot be written.
        """
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        with contextlib.ExitStack() as stack:
            fresh = stack.enter_context(temporary.open("w+b", buffering=0))
            fcntl.flock(fresh, fcntl.LOCK_EX)
            stack.callback(temporary.unlink, missing_ok=True)
            places: dict[int, tuple[int, int]] = {}
            try:
                _write_all(fresh, _line(msgspec.json.encode(self.header)))
                for position in sorted(self._places):
                    line = self._line_of(position)
                    places[position] = (fresh.tell(), len(line))
                    _write_all(fresh, line)
                os.fsync(fresh.fileno())
            except OSError as error:
                raise _disk_error(self.path, error) from error
            os.replace(temporary, self.path)
            stack.pop_all()
        self._file.close()
        self._file, self._places = fresh, places

    def _read(self) -> None:
        """Index the file, cut off a torn end, drop damaged lines, and write the header if there is none."""
        end = lines = 0
        header = None
        self._file.seek(0)
        for number, raw in enumerate(_buffered(self._file)):
            body = _checked(raw)
            if body is not None:
                if number == 0:
                    header = self._check_header(body)
                else:
                    self._places[msgspec.json.decode(body, type=Entry).at] = (end, len(raw))
                lines += 1
            elif number == 0 and not _TORN.fullmatch(raw):
                raise ConfigError(f"{self.path} is not a journal, or its first line is damaged; give --restart to label anew")
            damaged = body is None and raw.endswith(b"\n")
            lines += damaged
            if body is None and not damaged:
                break
            end += len(raw)
        self._file.truncate(end)
        if header is None:
            self._write(_line(msgspec.json.encode(self.header)))
        elif lines > len(self._places) + 1:
            self.compact()

    def _check_header(self, body: bytes) -> JournalHeader:
        try:
            header = msgspec.json.decode(body, type=JournalHeader)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{self.path} is not a journal; move it away, or give --restart") from error
        for field in JournalHeader.__struct_fields__:
            was, now = getattr(header, field), getattr(self.header, field)
            if was != now and not (field == "attributes" and not was):
                raise ConfigError(f"{self.path} has labels for {field} {was!r}, this run has {now!r}; give --restart to label anew")
        return header

    def _write(self, line: bytes) -> int:
        start = self._file.seek(0, os.SEEK_END)
        try:
            _write_all(self._file, line)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(start)
            raise _disk_error(self.path, error) from error
        return start


def _locked(path: Path) -> IO[bytes]:
    while True:
        file = path.open("a+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise TryAgainError(f"{path} is in use: another process is labelling into this output") from error
        # Between opening and locking, another process may have finished and removed the file.
        if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            return file
        file.close()


def _buffered(file: IO[bytes]) -> Iterator[bytes]:
    with open(file.fileno(), "rb", closefd=False) as lines:
        yield from lines


_TORN = re.compile(rb"[0-9a-f]{1,8}|[0-9a-f]{8} [^\n]*")
"""A line cut before its end. Anything else as the first line means that the file is no journal."""


def _line(body: bytes) -> bytes:
    return b"%08x %b\n" % (zlib.crc32(body), body)


def _checked(raw: bytes) -> bytes | None:
    """A line's JSON, or None if the line is torn or damaged."""
    body = raw[9:-1]
    return body if raw == _line(body) else None


def _write_all(file: IO[bytes], line: bytes) -> None:
    # One call per line, unless the disk is nearly full: then the call for the rest raises the reason.
    while line:
        line = line[file.write(line) :]


def _disk_error(path: Path, error: OSError) -> TryAgainError:
    return TryAgainError(f"{path} cannot be written: {error.strerror}; make room and run the same command again")
