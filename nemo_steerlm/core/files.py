"""Files that are either whole or absent: write to a neighbour, flush to disk, rename."""

from __future__ import annotations

import contextlib
import glob
import gzip
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[IO[str]]:
    """A UTF-8 text file (gzip where the name ends in ``.gz``) that appears under ``path`` only when the block ends without error.

    The temporary neighbour is removed on error. A process killed in the block leaves ``.NAME.*.tmp`` behind, never half a ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as raw:
            # mtime 0: the same content gives the same bytes.
            packed = gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) if path.suffix == ".gz" else None
            text = io.TextIOWrapper(packed or raw, encoding="utf-8", newline="", write_through=True)
            yield text
            text.detach()
            if packed:
                packed.close()
            raw.flush()
            os.fsync(raw.fileno())
        os.chmod(name, default_mode())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def remove_leftovers(path: Path) -> None:
    """Delete what killed writers of ``path`` left behind. Only for whoever knows that nobody writes it now."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????.tmp"):
        left.unlink(missing_ok=True)


def default_mode() -> int:
    """The mode that a new file gets under this process's umask, for files whose writer chose another one."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def file_digest(path: str | Path) -> str:
    """``sha256:…`` of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def json_line(record: Mapping[str, Any]) -> str:
    """One line as upstream writes it: ``json.dumps`` with its own separators, nothing escaped that need not be, newline at the end."""
    return json.dumps(record, ensure_ascii=False) + "\n"
