"""Answers received so far, in a file that is only appended to: a job that is killed asks again only for what it has not got."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec


class AnswerJournal:
    """One line a reply, under a digest of its request. A context manager.

    Which model answered is not in it: whoever names the file says whose answers it holds. A torn last line is cut off.
    """

    def __init__(self, path: Path) -> None:
        """Open or create ``path``."""
        self.path = path
        self._replies: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b", buffering=0)
        self._file.seek(0)
        end = 0
        for line in self._file:
            try:
                key, reply = msgspec.json.decode(line, type=tuple[str, dict[str, Any]])
            except msgspec.DecodeError:
                break
            if not line.endswith(b"\n"):
                break
            self._replies[key] = reply
            end += len(line)
        self._file.truncate(end)

    def __enter__(self) -> AnswerJournal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def get(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """The reply to ``request``, if it is there."""
        reply: dict[str, Any] | None = self._replies.get(_digest(request))
        return reply

    def add(self, request: Mapping[str, Any], reply: Mapping[str, Any]) -> None:
        """Hand one reply to the system, whole."""
        self._file.write(msgspec.json.encode((_digest(request), reply)) + b"\n")

    def remove(self) -> None:
        """Delete the file: its answers are in the output now."""
        self.path.unlink(missing_ok=True)


def _digest(request: Mapping[str, Any]) -> str:
    return hashlib.blake2b(msgspec.json.encode(request, order="sorted"), digest_size=16).hexdigest()
