"""What a source gives, written to files: conversations that teach the value model, that it labels, or both."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Literal

from nemo_steerlm.core.attributes import AttributeSchema
from nemo_steerlm.core.errors import DataError
from nemo_steerlm.core.files import atomic_write, json_line
from nemo_steerlm.core.labels import LANGUAGE_KEY, split
from nemo_steerlm.data.sources.source import Placed
from nemo_steerlm.data.splits import Split

Use = Literal["teach", "label"]
"""What records are for: the value model learns from their labels, or it labels them."""


@dataclasses.dataclass(frozen=True)
class SourceCounts:
    """What one source gave."""

    conversations: collections.Counter[Split] = dataclasses.field(default_factory=collections.Counter)
    """How many conversations, by split."""
    rated: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """How many learned turns that teach have each attribute."""


class RecordFiles:
    """A folder of record files, one for each split and use; conversations of both uses are written once. A context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sources: dict[str, SourceCounts] = {}
        """What each source gave, by name."""
        self.systems: collections.Counter[str] = collections.Counter()
        """How many conversations have each system prompt."""
        self._stack = contextlib.ExitStack()
        self._files: dict[str, IO[str]] = {}

    def __enter__(self) -> RecordFiles:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # type: ignore[arg-type]

    @property
    def rated(self) -> collections.Counter[str]:
        """How many learned turns that teach have each attribute, over all sources."""
        return sum((counts.rated for counts in self.sources.values()), collections.Counter())

    def write(self, placed: Iterable[Placed], source: str = "data") -> None:
        """Write every conversation of one source."""
        counts = self.sources.setdefault(source, SourceCounts())
        for place in placed:
            conversation = place.conversation
            self._file(place).write(json_line(conversation.to_record()))
            self.systems[conversation.system] += 1
            counts.conversations[place.split] += 1
            if place.teaches:
                for turn in conversation.turns:
                    if turn.speaker != conversation.mask and turn.label:
                        counts.rated.update(field.name for field in split(turn.label) if field.name != LANGUAGE_KEY)

    def require_rated(self) -> None:
        """Raise DataError where nothing teaches: the value model would have nothing to learn."""
        if not self.rated:
            found = f"{self.systems.total()} conversations" if self.systems else "no conversation"
            raise DataError(f"the data has {found} and no rated answer: the value model would have nothing to learn")

    def paths(self, use: Use, split: Split) -> list[Path]:
        """The files that hold the records of one use and split, in order; those of that use alone come first.

        Raises DataError where there is none.
        """
        found = [path for name in (use, "both") if (path := self._path(name, split)).exists()]
        if not found:
            instead = "give more data, or change the share that validates"
            raise DataError(f"the data has no conversation to {use} in split {split}", instead=instead)
        return found

    def absent(self, schema: AttributeSchema) -> list[str]:
        """The attributes of ``schema`` that no label has."""
        rated = self.rated
        return [name for name in schema.names if name not in rated]

    def _file(self, place: Placed) -> IO[str]:
        name = "both" if place.teaches and place.to_label else "teach" if place.teaches else "label"
        path = self._path(name, place.split)
        if path.name not in self._files:
            self._files[path.name] = self._stack.enter_context(atomic_write(path))
        return self._files[path.name]

    def _path(self, name: str, split: Split) -> Path:
        return self.folder / f"{name}_{split}.jsonl"
