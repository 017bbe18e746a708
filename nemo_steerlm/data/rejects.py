"""What happens to a record that cannot be used: by default it ends the command, on request it is set aside with its reason."""

from __future__ import annotations

import collections
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

from nemo_steerlm.core.errors import DataError, Where
from nemo_steerlm.core.files import atomic_write, json_line

OnError = Literal["fail", "skip"]


class Rejects:
    """Bad records of one run. A context manager around the writing of its output.

    With ``fail`` the first one is raised. With ``skip`` each becomes a line of ``<output>.rejected.jsonl`` (file, line, field, reason,
    what to write instead, and the raw text), which is written when the block ends well; an older one is removed where there is
    nothing to reject.
    """

    def __init__(self, output: str | Path, on_error: OnError = "fail") -> None:
        self.path = Path(f"{output}.rejected.jsonl")
        self.counts: collections.Counter[str] = collections.Counter()
        self._skip = on_error == "skip"
        self._lines: IO[str] | None = None

    def __enter__(self) -> Rejects:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.save()
        if self._lines:
            self._lines.close()

    @property
    def count(self) -> int:
        """How many records were set aside."""
        return self.counts.total()

    @contextlib.contextmanager
    def catch(self, raw: bytes | str) -> Iterator[None]:
        """A block that works on the input ``raw``; a DataError in it is handled by ``add``."""
        try:
            yield
        except DataError as error:
            self.add(error, raw)

    def add(self, error: DataError, raw: bytes | str) -> None:
        """Set ``raw`` aside because of ``error``, or raise ``error``.

        Raises:
            DataError: ``error`` itself, if broken records end the work.
        """
        if not self._skip:
            raise error
        if self._lines is None:
            self._lines = tempfile.TemporaryFile("w+", encoding="utf-8", newline="")  # noqa: SIM115  # closed on exit
        text = raw if isinstance(raw, str) else raw.decode("utf-8", "backslashreplace")
        self.counts[error.reason] += 1
        where = error.where
        line = {"file": where.file, "line": where.line, "field": where.field, "reason": error.reason, "instead": error.instead}
        self._lines.write(json_line({**line, "text": text.rstrip("\r\n")}))

    def require_kept(self, kept: int, where: Where) -> None:
        """Raise DataError with the commonest reason where records were set aside and none was kept."""
        if not kept and self.count:
            [(reason, times)] = self.counts.most_common(1)
            raise DataError(f"none of {self.count} records can be used", where=where, instead=f"{times} of them: {reason}")

    def save(self) -> None:
        """Write what was set aside, or remove an older file. Done when the block ends well; earlier by whoever ends it otherwise."""
        if self._lines is None:
            self.path.unlink(missing_ok=True)
            return
        self._lines.seek(0)
        with atomic_write(self.path) as file:
            for line in self._lines:
                file.write(line)
