"""Text files as they come: packed or not, with a byte order mark or without. What a file is, its first bytes say, not its name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import IO, Any, cast

from nemo_steerlm.core.errors import DataError, Where

BOM = b"\xef\xbb\xbf"
"""UTF-8's byte order mark: parsers may pass over it (RFC 8259 section 8.1)."""

_PACKINGS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}

_UTF8 = "save the file as UTF-8"
_OTHERS = {
    b"\xff\xfe\x00\x00": ("UTF-32", _UTF8),
    b"\x00\x00\xfe\xff": ("UTF-32", _UTF8),
    b"\xff\xfe": ("UTF-16", _UTF8),
    b"\xfe\xff": ("UTF-16", _UTF8),
    b"PAR1": ("a Parquet file", "write it as JSONL, or use a source that reads Parquet"),
    b"ARROW1": ("an Arrow file", "write it as JSONL or Parquet"),
    b"PK\x03\x04": ("a zip archive", "unpack it, or save a spreadsheet as CSV"),
    b"version https://git-lfs": ("a Git LFS pointer, not the file itself", "fetch the file with: git lfs pull"),
    b"<!DOCTYPE": ("a web page", "download the file itself"),
    b"<html": ("a web page", "download the file itself"),
}
"""What is no UTF-8 text, by its first bytes, and what to do about it."""

READ_ERRORS = (EOFError, OSError, zlib.error, lzma.LZMAError)
"""What reading an opened file may raise; ``unreadable`` says it."""


def packing(path: str | Path) -> str | None:
    """The name of the format that a file is packed in; None where it is not. Raises OSError."""
    with Path(path).open("rb") as file:
        start = file.read(8)
    return next((name for magic, name in _PACKINGS.items() if start.startswith(magic)), None)


def open_binary(path: str | Path) -> IO[bytes]:
    """``path`` for reading, unpacked where it is packed. Raises DataError where it cannot be opened."""
    try:
        kind = packing(path)
        if kind == "gzip":
            return cast("IO[bytes]", gzip.open(path, "rb"))
        if kind == "bzip2":
            return cast("IO[bytes]", bz2.open(path, "rb"))
        if kind == "xz":
            return cast("IO[bytes]", lzma.open(path, "rb"))
        file = Path(path).open("rb")  # noqa: SIM115 - the caller closes it
        return file if kind is None else cast("IO[bytes]", io.BufferedReader(_Zstd(file)))
    except OSError as error:
        raise unreadable(error, path) from error


def open_text(path: str | Path) -> IO[bytes]:
    """The bytes of a UTF-8 text, unpacked, without a byte order mark. Raises DataError for a file that begins as something else."""
    file = open_binary(path)
    try:
        start = cast(Any, file).peek(64)[:64]
        if start.startswith(BOM):
            file.read(len(BOM))
        elif found := _other(start):
            raise DataError(f"the file is {found[0]}", where=Where(file=str(path)), instead=found[1])
    except READ_ERRORS as error:
        file.close()
        raise unreadable(error, path) from error
    except DataError:
        file.close()
        raise
    return file


def _other(start: bytes) -> tuple[str, str] | None:
    for magic, found in _OTHERS.items():
        if start.startswith(magic):
            return found
    if b"\0" in start:
        # Latin letters in UTF-16 are every second byte of the file.
        halves = {bool(start[0::2].strip(b"\0")), bool(start[1::2].strip(b"\0"))}
        return ("UTF-16", _UTF8) if halves == {True, False} else ("binary data, not text", _UTF8)
    return None


def unreadable(error: BaseException, path: str | Path, line: int | None = None) -> DataError:
    """What went wrong while a file was opened or read, as this project says it."""
    if isinstance(error, OSError) and error.errno is not None:
        return DataError(f"cannot be read: {error.strerror}", where=Where(file=str(path)))
    try:
        kind = packing(path) or "file"
    except OSError:
        kind = "file"
    return DataError(f"broken {kind}: {error}", where=Where(file=str(path), line=line), instead="copy or download it again")


class _Zstd(io.RawIOBase):
    """A zstd file's content, all of its frames. Raises EOFError where the last one is torn."""

    def __init__(self, packed: IO[bytes]) -> None:
        self._packed = packed
        self._frame: Any = None
        self._left = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._packed.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        import zstandard

        while not self._ready:
            data = self._left or self._packed.read(1 << 17)
            if not data:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("the file ends before its end-of-stream marker")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            try:
                self._ready = memoryview(self._frame.decompress(data))
            except zstandard.ZstdError as error:
                raise EOFError(str(error)) from error
            self._left = self._frame.unused_data if self._frame.eof else b""
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size
