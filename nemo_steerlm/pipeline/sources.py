"""Where a pipeline's rated data comes from: one model a kind of source. Part of the manifest."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.alias_generators import to_camel

Text = Annotated[str, Field(min_length=1, max_length=4096)]
Reference = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00-\x1f]+$")]
"""A file or folder: a path (relative ones start at the manifest), ``pypi:NAME==VERSION/path/in/archive``, or a hub name."""
Name = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Spec(BaseModel):
    """Base of every part of a manifest: camelCase keys, unknown keys refused, immutable."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=False, extra="forbid", frozen=True, use_attribute_docstrings=True)


class Source(Spec):
    """Base of every kind of source."""

    def references(self) -> tuple[str, ...]:
        """The files and folders whose content decides what is read."""
        raise NotImplementedError


class OasstSource(Source):
    """OpenAssistant message trees, read and split as the tutorial's preprocessing.py does."""

    path: Reference
    """A ``*.trees.jsonl`` or ``*.trees.jsonl.gz`` file, or ``hf:OWNER/NAME/FILE`` for one on the Hugging Face hub."""
    limit: Annotated[int, Field(ge=2, le=100_000_000)] | None = None
    """Read only the first so many trees (the tutorial's ``head -n 5000``); all by default."""
    split_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Share of trees used for training; the rest validates."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 10
    """Seed of the split."""

    def references(self) -> tuple[str, ...]:
        """The trees."""
        return (self.path,)


class HelpSteerSource(Source):
    """HelpSteer or HelpSteer2 prompt and response pairs with five ratings."""

    path: Reference
    """A folder or ``hf:nvidia/HelpSteer`` / ``hf:nvidia/HelpSteer2`` holding train and validation ``.jsonl`` or ``.jsonl.gz``."""
    preference: bool = False
    """Read HelpSteer2's preference pairs instead of its ratings."""

    def references(self) -> tuple[str, ...]:
        """The folder."""
        return (self.path,)


class RatingColumn(Spec):
    """A column of human ratings, and how it becomes an attribute's whole numbers."""

    column: Annotated[str, Field(min_length=1, max_length=128)]
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
    """A ``.csv``, ``.tsv``, ``.txt`` (tab-separated) or ``.jsonl`` file, possibly ``.gz``."""
    prompt: Text
    """What the User turn before each text says."""


class RatedTextSource(Source):
    """Tables of rated text: each row becomes a one-question conversation whose answer carries the ratings."""

    files: Annotated[tuple[RatedFile, ...], Field(min_length=1, max_length=64)]
    """The tables."""
    text_column: Annotated[str, Field(min_length=1, max_length=128)] = "text"
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
    """Share of rows whose ratings are hidden from the value model, to check what it predicts for them. It labels all rows."""
    split_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Share of rows used for training; the rest validates."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 10
    """Seed of the sample and of both splits."""

    def references(self) -> tuple[str, ...]:
        """The tables."""
        return tuple(file.path for file in self.files)

    @field_validator("remove")
    @classmethod
    def _pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return pattern


class RecordsSource(Source):
    """Ready-made conversation records (JSONL, the tutorial's keys)."""

    train: Reference
    """Labelled records that teach the value model."""
    validation: Reference
    """Labelled records that check it."""
    unlabelled: Reference | None = None
    """More records for the value model to label before the SteerLM model trains; without it, it labels ``train`` and ``validation``."""

    def references(self) -> tuple[str, ...]:
        """The record files."""
        return tuple(path for path in (self.train, self.validation, self.unlabelled) if path)


class DataSource(Spec):
    """Rated data: exactly one kind."""

    oasst: OasstSource | None = None
    """OpenAssistant trees."""
    helpsteer: HelpSteerSource | None = None
    """HelpSteer or HelpSteer2."""
    rated_text: RatedTextSource | None = None
    """Any tables of rated text."""
    records: RecordsSource | None = None
    """Ready-made records."""
    on_error: Literal["fail", "skip"] = "fail"
    """What a broken record does: end the pipeline with its file, line and field, or go to a ``.rejected.jsonl`` and be counted."""
    system: Annotated[str, Field(max_length=4096)] | None = None
    """System prompt of the records; the tutorial's by default, an empty one if set to ``""``."""

    @model_validator(mode="after")
    def _exactly_one(self) -> DataSource:
        given = [to_camel(kind) for kind in self.kinds() if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"name exactly one of {', '.join(map(to_camel, self.kinds()))}, found {', '.join(given) or 'none'}")
        return self

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        """The fields that name a source: those whose type is one."""
        return tuple(name for name, field in cls.model_fields.items() if any(map(_is_source, get_args(field.annotation))))

    @property
    def source(self) -> Source:
        """The one source that is named."""
        found: Source = next(value for kind in self.kinds() if (value := getattr(self, kind)) is not None)
        return found


def _is_source(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Source)
