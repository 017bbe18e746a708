"""Any tables of rated text as a source."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from nemo_steerlm.core.spec import Name, Reference, Spec, Text
from nemo_steerlm.data import rated_text
from nemo_steerlm.data.sources.source import Placed, Seed, Source, SourceContext, SplitRatio

Column = Annotated[str, Field(min_length=1, max_length=128)]


class RatingColumn(Spec):
    """A column of human ratings, and how it becomes an attribute's whole numbers."""

    column: Column
    """The column's header, or its 0-based number where the table has no header."""
    range: tuple[float, float] | None = None
    """The ratings that map to the attribute's low and high, linearly, clamped outside. Without it, equally filled bins."""


class ComputedAttribute(Spec):
    """An attribute measured on the text itself."""

    measure: Literal["words", "characters"] = "words"
    """What is counted; counts become levels by equally filled bins over the teaching half."""


class RatedFile(Spec):
    """One table and what its texts answer to."""

    path: Reference
    """A ``.csv``, ``.tsv``, ``.txt`` (tab-separated), ``.jsonl`` or ``.json`` file, packed or not, or ``.parquet``."""
    prompt: Text | None = None
    """What the User turn before each text says."""
    prompt_column: Column | None = None
    """The column that says it instead, row by row."""
    system_column: Column | None = None
    """The column with each row's system prompt; ``data.system`` where it is absent or empty."""

    @model_validator(mode="after")
    def _one_prompt(self) -> RatedFile:
        if (self.prompt is None) == (self.prompt_column is None):
            raise ValueError("give exactly one of prompt and promptColumn")
        return self


class RatedTextSource(Source):
    """Tables of rated text: each row becomes a one-question conversation whose answer carries the ratings."""

    attribute_fields: ClassVar = ("ratings", "computed")

    files: Annotated[tuple[RatedFile, ...], Field(min_length=1, max_length=64)]
    """The tables."""
    text_column: Column = "text"
    """The column with the text: a header, or a 0-based number where the tables have no header."""
    header: bool = True
    """Whether the first row of a table names its columns."""
    ratings: Annotated[dict[Name, RatingColumn], Field(max_length=32)] = {}
    """Attributes read from columns of ratings."""
    computed: Annotated[dict[Name, ComputedAttribute], Field(max_length=32)] = {}
    """Attributes measured on the text."""
    remove: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """Regular expression (Python's) of what is taken out of texts and neither measured nor learned: blanked names, links, tags."""
    max_words: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Leave longer texts out."""
    limit: Annotated[int, Field(ge=8, le=100_000_000)] | None = None
    """Use a random sample of so many rows, the same number from each file where there are enough; all rows by default."""
    hidden: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of rows whose ratings are hidden from the value model, to check what it predicts for them. It labels all rows.
    Half checks and teaches alike; where ratings are few, hide fewer."""
    split_ratio: SplitRatio = 0.95
    """Share of rows used for training; the rest validates."""
    seed: Seed = 10
    """Seed of the sample and of both splits."""

    @field_validator("remove")
    @classmethod
    def _pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return pattern

    @model_validator(mode="after")
    def _rated_or_computed(self) -> RatedTextSource:
        if both := set(self.ratings) & set(self.computed):
            raise ValueError(f"attribute {min(both)} is both rated and computed; drop one")
        return self

    def references(self) -> tuple[str, ...]:
        """The tables."""
        return tuple(file.path for file in self.files)

    def read(self, reading: SourceContext) -> Iterator[Placed]:
        """Every row; those whose label is hidden are only to be labelled."""
        files = [file.model_dump() | {"path": str(reading.resolve(file.path))} for file in self.files]
        tables = rated_text.RatedText.from_dict({**self.model_dump(), "files": files, "system": reading.system_prompt})
        for part, conversation in rated_text.read_rated_text(tables, reading.schema, reading.rejects, tokens=reading.tokens):
            yield Placed("train" if part.endswith("train") else "val", conversation, teaches=not part.startswith("hidden"))
