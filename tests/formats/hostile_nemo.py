"""``.nemo`` files that mean harm, made from one that does not."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

Change = Callable[[str, bytes], bytes | None]


def member(name: str, content: bytes = b"x") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, content


def link(name: str, target: Path | str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, str(target)
    return info, b""


def written(path: Path, members: Iterable[tuple[tarfile.TarInfo, bytes]], mode: str = "w:") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return path


def changed(source: Path, path: Path, change: Change) -> Path:
    """``source`` with the contents of its members changed; None leaves one out."""
    members = []
    with tarfile.open(source) as archive:
        for info in archive:
            if (file := archive.extractfile(info)) is not None:
                content = change(info.name.removeprefix("./"), file.read())
                if content is not None:
                    members.append(member(info.name, content))
    return written(path, members)
