"""Every error this package raises on purpose, with the exit code it ends a command with.

    SteerLMError              1   something cannot be done; never raised bare
    ├── UsageError            2   the command line or the manifest is wrong
    ├── DataError            65   a record is wrong: file, line, field, what was found, what to write instead
    ├── UnavailableError     69   a server cannot be reached (worth a retry)
    ├── TryAgainError        75   a passing failure (worth a retry)
    └── ConfigError          78   settings that cannot work together, found before anything heavy starts

Exit codes are those of ``sysexits.h``; 2, 65 and 78 are permanent, 69 and 75 may be tried again, and a stage stopped by
SIGTERM exits 143. The command line prints ``str(error)`` and no traceback.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable

EXIT_TERMINATED = 143
PERMANENT_EXIT_CODES = (2, 65, 78)
RETRIABLE_EXIT_CODES = (69, 75)


class SteerLMError(Exception):
    """Base of all errors below. ``code`` is a stable machine word, ``exit_code`` what a command ends with."""

    code = "error"
    exit_code = 1


class UsageError(SteerLMError):
    """The command line or the manifest asks for something that does not exist."""

    code = "usage"
    exit_code = 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """A place in an input: every part that is known is printed, as ``file:line: field``."""

    file: str | None = None
    line: int | None = None
    """1-based."""
    field: str | None = None

    def at(self, field: str) -> Where:
        """The same place, one field further in: ``labels`` then ``.quality``, or ``conversations`` then ``[2]``."""
        joint = "" if not self.field or field.startswith("[") else "."
        return dataclasses.replace(self, field=f"{self.field or ''}{joint}{field}")

    def __str__(self) -> str:
        place = self.file or ""
        if self.line is not None:
            place += f":{self.line}" if place else f"line {self.line}"
        return ": ".join(part for part in (place, self.field) if part)


class DataError(SteerLMError):
    """A record is wrong. ``reason`` is a short stable phrase, good for counting; ``str()`` is the whole sentence."""

    code = "data"
    exit_code = 65

    def __init__(self, reason: str, *, where: Where | None = None, instead: str | None = None) -> None:
        self.reason = reason
        self.where = where or Where()
        self.instead = instead
        super().__init__(reason)

    def __str__(self) -> str:
        place = str(self.where)
        sentence = f"{place}: {self.reason}" if place else self.reason
        return f"{sentence}; {self.instead}" if self.instead else sentence

    def located(self, *, file: str | None = None, line: int | None = None) -> DataError:
        """The same error with the file and line filled in by whoever knows them."""
        where = Where(file=self.where.file or file, line=self.where.line or line, field=self.where.field)
        return DataError(self.reason, where=where, instead=self.instead)


class UnavailableError(SteerLMError):
    """A server cannot be reached."""

    code = "unavailable"
    exit_code = 69


class TryAgainError(SteerLMError):
    """Failed for a reason that may pass."""

    code = "try-again"
    exit_code = 75


class ConfigError(SteerLMError):
    """Settings that cannot work together."""

    code = "config"
    exit_code = 78


def shown(value: object, limit: int = 60) -> str:
    """``value`` as an error message quotes it: repr, cut to ``limit`` characters."""
    if isinstance(value, (str, bytes, list, tuple)):
        value = value[: limit + 1]  # what is behind would be cut anyway, and may be much
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean …? `` where a known name is close to ``name``, else nothing: goes before the list of what is known."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}? " if near else ""
