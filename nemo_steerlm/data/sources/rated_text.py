"""Any tables of rated text as a source: each row answers a question, and its ratings are the answer's label."""

from __future__ import annotations

import array
import bisect
import heapq
import re
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from nemo_steerlm.core.attributes import Attribute
from nemo_steerlm.core.conversation import ASSISTANT, USER, Conversation, Turn
from nemo_steerlm.core.errors import DataError, Where, shown
from nemo_steerlm.core.spec import Name, Reference, Spec, Text
from nemo_steerlm.core.template import ChatTokens, first_marker
from nemo_steerlm.data.chance import chance
from nemo_steerlm.data.sources.messages import ROLES
from nemo_steerlm.data.sources.rows import SYSTEM, share, turns_of
from nemo_steerlm.data.sources.source import Placed, Seed, Source, SourceContext, SplitRatio, level
from nemo_steerlm.data.splits import Split
from nemo_steerlm.data.tables import Row, cell, number_in, read_rows

Column = Annotated[str, Field(min_length=1, max_length=128)]


class RatingColumn(Spec):
    """A column of human ratings, and how it becomes an attribute's whole numbers."""

    column: Column
    """The column's header, or its 0-based number where the table has no header."""
    range: tuple[float, float] | None = None
    """The ratings that map to the attribute's low and high, linearly, clamped outside. Without it, equally filled bins."""

    @model_validator(mode="after")
    def _differ(self) -> RatingColumn:
        if self.range is not None and self.range[0] == self.range[1]:
            raise ValueError(f"range needs two different ratings, found {self.range[0]} twice")
        return self


class ComputedAttribute(Spec):
    """An attribute measured on the text itself."""

    measure: Literal["words", "characters"] = "words"
    """What is counted; counts become levels by equally filled bins over the teaching half."""

    def of(self, text: str) -> int:
        """The measure of ``text``."""
        return len(text.split()) if self.measure == "words" else len(text)


class RatedFile(Spec):
    """One table and what its texts answer to."""

    path: Reference
    """A ``.csv``, ``.tsv``, ``.txt`` (tab-separated), ``.jsonl`` or ``.json`` file, packed or not, or ``.parquet``."""
    prompt: Text | None = None
    """What the User turn before each text says."""
    prompt_column: Column | None = None
    """The column that says it instead, row by row: a text, or a chat of several turns (a list of ``role`` and ``content``)."""
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
        """A conversation for every chosen row, in file order; those whose label is hidden are only to be labelled.

        Which rows are sampled, hidden and held out follows from ``seed`` and the row alone, so changing one row moves no other; rows with
        equal texts fall into the same part. Edges of bins come from the teaching rows, never from hidden ones. The tables are read up to
        three times, and memory holds at most one number per row and binned attribute. A bad row goes to ``reading.rejects``.

        Raises:
            DataError: If an attribute is none of the schema's.
        """
        for name in (*self.ratings, *self.computed):
            reading.schema[name]  # raises on a name that the schema lacks
        tables = _Tables(self, reading)
        sample = tables.sample()
        bins = tables.bins(sample)
        for row in tables.rows():
            if isinstance(row, _BadRow):
                reading.rejects.add(row.error, row.raw)
            elif sample.has(row):
                yield tables.placed(row, bins)


class _BadRow(NamedTuple):
    error: DataError
    raw: str


class _RatedRow(NamedTuple):
    """A row that can be used."""

    file: int
    """Position of its table."""
    number: int
    question: tuple[Turn, ...]
    text: str
    system: str
    values: dict[str, float]
    """Ratings and measures by attribute, not yet levels."""


class _Sample(NamedTuple):
    """Which rows are used: those whose chance is at most their table's threshold."""

    seed: int
    thresholds: list[float]

    def has(self, row: _RatedRow) -> bool:
        return chance(self.seed, "sample", row.file, row.number) <= self.thresholds[row.file]


class _Bins(NamedTuple):
    """A level more at each edge that is reached."""

    attribute: Attribute
    edges: list[float]

    def of(self, value: float) -> int:
        return self.attribute.low + bisect.bisect_right(self.edges, value)


class _Tables:
    """The tables of one source, and what becomes of their rows."""

    def __init__(self, source: RatedTextSource, reading: SourceContext) -> None:
        self.source, self.schema, self.tokens = source, reading.schema, reading.tokens
        self.system = reading.system_prompt
        self.paths = [reading.resolve(file.path) for file in source.files]

    def rows(self) -> Iterator[_RatedRow | _BadRow]:
        """Every row of some text that is not too long; a bad one as its error."""
        source = self.source
        for i, path in enumerate(self.paths):
            for row in read_rows(path, header=source.header):
                try:
                    rated = self._rated(i, row, Where(file=str(path), line=row.number))
                except DataError as error:
                    yield _BadRow(error, row.raw)
                    continue
                if rated.text and (source.max_words is None or len(rated.text.split()) <= source.max_words):
                    yield rated

    def _rated(self, i: int, row: Row, where: Where) -> _RatedRow:
        source, file = self.source, self.source.files[i]
        text = _text(row, source.text_column, where, self.tokens)
        if source.remove is not None:
            text = re.sub(source.remove, "", text).strip()
        question, system = self._question(file, row, where)
        if file.system_column and str(cell(row, file.system_column, where) or "").strip():
            system = _text(row, file.system_column, where, self.tokens)
        values: dict[str, float] = {name: number_in(row, rating.column, where) for name, rating in source.ratings.items()}
        values |= {name: computed.of(text) for name, computed in source.computed.items()}
        return _RatedRow(i, row.number, question, text, system, values)

    def _question(self, file: RatedFile, row: Row, where: Where) -> tuple[tuple[Turn, ...], str]:
        """What a row's text answers to, and its system prompt."""
        column = file.prompt_column
        if column is None:
            return (Turn(speaker=USER, text=file.prompt or ""),), self.system
        if not isinstance(cell(row, column, where), list):
            return (Turn(speaker=USER, text=_text(row, column, where, self.tokens)),), self.system
        found = turns_of(row.cells, column, ("role", "content"), ROLES, where)
        for i, (_, text) in enumerate(found):
            _refuse_marker(text, where.at(f"{column}[{i}]"), self.tokens)
        turns = tuple(Turn(speaker=speaker, text=text) for speaker, text in found if speaker != SYSTEM)
        if not turns or (turns[0].speaker, turns[-1].speaker) != (USER, USER):
            raise DataError("no question", where=where.at(column), instead="write a chat that begins and ends with a turn of the user")
        return turns, "\n\n".join(text for speaker, text in found if speaker == SYSTEM) or self.system

    def sample(self) -> _Sample:
        """The same number of rows from each table where there are enough, ``limit`` altogether."""
        source = self.source
        if source.limit is None:
            return _Sample(source.seed, [1.0] * len(self.paths))
        lowest: list[list[float]] = [[] for _ in self.paths]
        for row in self.rows():
            if isinstance(row, _RatedRow):
                # A heap of negatives keeps the `limit` lowest chances of each table.
                place = -chance(source.seed, "sample", row.file, row.number)
                (heapq.heappush if len(lowest[row.file]) < source.limit else heapq.heappushpop)(lowest[row.file], place)
        thresholds = [-1.0] * len(self.paths)
        left = source.limit
        by_size = sorted(range(len(lowest)), key=lambda i: len(lowest[i]))
        for rank, i in enumerate(by_size):
            quota = min(len(lowest[i]), left // (len(by_size) - rank))
            left -= quota
            if quota:
                thresholds[i] = sorted(-place for place in lowest[i])[quota - 1]
        return _Sample(source.seed, thresholds)

    def bins(self, sample: _Sample) -> dict[str, _Bins]:
        """By attribute, where its levels do not follow from a range of ratings."""
        ranged = {name for name, rating in self.source.ratings.items() if rating.range is not None}
        binned = {name: array.array("d") for name in (*self.source.ratings, *self.source.computed) if name not in ranged}
        for row in self.rows() if binned else ():
            if isinstance(row, _RatedRow) and sample.has(row) and not self._hidden(row):
                for name, numbers in binned.items():
                    numbers.append(row.values[name])
        return {name: _Bins(self.schema[name], _edges(numbers, len(self.schema[name].values))) for name, numbers in binned.items()}

    def placed(self, row: _RatedRow, bins: dict[str, _Bins]) -> Placed:
        """The row as a conversation."""
        hidden, label = self._hidden(row), self.schema.encode({name: self._level(name, value, bins) for name, value in row.values.items()})
        answer = Turn(speaker=ASSISTANT, text=row.text, label=None if hidden else label, gt_label=label if hidden else None)
        conversation = Conversation(
            turns=(*row.question, answer),
            tree_id=f"{self.paths[row.file].name}:{row.number}",
            system=row.system,
            mode="TEXT_TO_VALUE",
        )
        split: Split = "train" if chance(self.source.seed, "split", row.text) < self.source.split_ratio else "val"
        return Placed(split, conversation, teaches=not hidden)

    def _hidden(self, row: _RatedRow) -> bool:
        return chance(self.source.seed, "hidden", row.text) < self.source.hidden

    def _level(self, name: str, value: float, bins: dict[str, _Bins]) -> int:
        if name in bins:
            return bins[name].of(value)
        bounds = self.source.ratings[name].range
        assert bounds is not None
        return level(self.schema[name], share(value, bounds, Where()))


def _text(row: Row, column: str, where: Where, tokens: ChatTokens) -> str:
    value = cell(row, column, where)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"text is {shown(value)}", where=where.at(column), instead="write a text that is not empty")
    _refuse_marker(value, where.at(column), tokens)
    return value.strip()


def _refuse_marker(text: str, where: Where, tokens: ChatTokens) -> None:
    if (found := first_marker(text, tokens)) is not None:
        raise DataError(f"control token {shown(found)} in the text", where=where, instead="remove it, or choose other chat tokens")


def _edges(values: array.array[float], count: int) -> list[float]:
    """Borders of ``count`` equally filled bins. A value on a border belongs above it, so equal values share a bin."""
    ordered = sorted(values)
    return [ordered[len(ordered) * i // count] for i in range(1, count)] if ordered else []
