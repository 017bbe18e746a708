"""Any tables of rated text as conversation records: each row answers a question, and its ratings are the answer's label."""

from __future__ import annotations

import array
import bisect
import heapq
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from nemo_steerlm.core.attributes import Attribute, AttributeSchema
from nemo_steerlm.core.conversation import ASSISTANT, SYSTEM_PROMPT, USER, Conversation, Mode, Turn
from nemo_steerlm.core.errors import DataError, UsageError, Where, shown
from nemo_steerlm.core.template import ChatTokens, first_marker
from nemo_steerlm.data.chance import chance
from nemo_steerlm.data.rejects import Rejects
from nemo_steerlm.data.tables import Row, cell, number_in, read_rows

Part = Literal["train", "validation", "hidden_train", "hidden_validation"]
"""Teaching records, and those whose labels are hidden, each in two splits."""


class RatedFile(msgspec.Struct, frozen=True, kw_only=True):
    """One table, and what its texts answer to."""

    path: str
    prompt: str | None = None
    """What the User turn before each text says."""
    prompt_column: str | None = None
    """The column that says it instead, row by row."""
    system_column: str | None = None
    """The column with each row's system prompt; that of all rows where it is absent or empty."""

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.prompt_column is None):
            raise UsageError(f"{self.path}: give exactly one of prompt and prompt_column")


class RatingColumn(msgspec.Struct, frozen=True, kw_only=True):
    """A column of ratings, and how it becomes an attribute's whole numbers."""

    column: str
    range: tuple[float, float] | None = None
    """The ratings that mean the attribute's low and high: linear between, clamped outside. Without it, equally filled bins."""

    def __post_init__(self) -> None:
        if self.range is not None and self.range[0] == self.range[1]:
            raise UsageError(f"column {self.column}: range needs two different ratings, found {self.range}")


class ComputedAttribute(msgspec.Struct, frozen=True, kw_only=True):
    """An attribute measured on the text itself; its levels are equally filled bins."""

    measure: Literal["words", "characters"] = "words"

    def of(self, text: str) -> int:
        """The measure of ``text``."""
        return len(text.split()) if self.measure == "words" else len(text)


class RatedText(msgspec.Struct, frozen=True, kw_only=True):
    """Tables of rated text, and what becomes of them. Field names are those of the manifest's ``ratedText``, in snake case."""

    files: tuple[RatedFile, ...]
    text_column: str = "text"
    """A header, or a 0-based number where the tables have no header."""
    header: bool = True
    encoding: str = "utf-8"
    ratings: dict[str, RatingColumn] = {}
    """Columns by attribute."""
    computed: dict[str, ComputedAttribute] = {}
    """Measures by attribute."""
    remove: str | None = None
    """Regular expression of what is taken out of texts, and is neither measured nor learned: blanked names, links. A text of which
    nothing is left is left out."""
    max_words: int | None = None
    """Longer texts are left out."""
    limit: int | None = None
    """Use a random sample of so many rows, the same number from each file where there are enough."""
    hidden: float = 0.5
    """Share of rows whose label is hidden: it moves from ``label`` to ``gt_label``."""
    split_ratio: float = 0.95
    """Share of rows that train; the rest validates."""
    seed: int = 10
    system: str = SYSTEM_PROMPT
    mode: Mode = "TEXT_TO_VALUE"

    def __post_init__(self) -> None:
        if not self.ratings and not self.computed:
            raise UsageError("rated text needs at least one attribute in ratings or computed")
        if both := set(self.ratings) & set(self.computed):
            raise UsageError(f"attribute {min(both)} is both rated and computed; drop one")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RatedText:
        """From plain data. Raises UsageError where it is malformed."""
        try:
            return msgspec.convert(dict(data), cls)
        except msgspec.ValidationError as error:
            raise UsageError(f"rated text: {error}") from error


class RatedPart(NamedTuple):
    """A record and the part it belongs to."""

    part: Part
    conversation: Conversation


def read_rated_text(
    source: RatedText, schema: AttributeSchema, rejects: Rejects, *, tokens: ChatTokens | None = None
) -> Iterator[RatedPart]:
    """The records of every chosen row, in file order.

    Which rows are sampled, hidden and held out follows from ``seed`` and the row alone, so changing one row moves no other; rows with
    equal texts fall into the same part. Edges of bins come from the teaching rows, never from hidden ones. The tables are read up to
    three times, and memory holds at most one number per row and binned attribute. A bad row goes to ``rejects``.
    """
    for name in (*source.ratings, *source.computed):
        schema[name]  # raises on a name that the schema lacks
    chosen = _sampled(source, tokens)
    levels = _levels(source, schema, chosen, tokens)
    for i, row, example in _examples(source, tokens):
        if isinstance(example, DataError):
            rejects.add(example, row.raw)
        elif chosen.has(i, row.number):
            values = {name: levels[name].of(value) for name, value in example.values.items()}
            yield RatedPart(_part(source, example.text), _conversation(source, i, row.number, example, schema.encode(values)))


class _Example(NamedTuple):
    """A row that can be used."""

    prompt: str
    text: str
    system: str
    values: dict[str, float]
    """Ratings and measures by attribute, not yet levels."""


def _examples(source: RatedText, tokens: ChatTokens | None) -> Iterator[tuple[int, Row, _Example | DataError]]:
    """Every row of some text that is not too long, with its file's position; a bad one as its error."""
    for i, file in enumerate(source.files):
        for row in read_rows(file.path, header=source.header, encoding=source.encoding):
            where = Where(file=file.path, line=row.number)
            try:
                example = _example(source, file, row, where, tokens)
            except DataError as error:
                yield i, row, error
                continue
            if example.text and (source.max_words is None or len(example.text.split()) <= source.max_words):
                yield i, row, example


def _example(source: RatedText, file: RatedFile, row: Row, where: Where, tokens: ChatTokens | None) -> _Example:
    text = _text(row, source.text_column, where, tokens)
    if source.remove is not None:
        text = re.sub(source.remove, "", text).strip()
    prompt = _text(row, file.prompt_column, where, tokens) if file.prompt_column else file.prompt or ""
    system = source.system
    if file.system_column and str(cell(row, file.system_column, where) or "").strip():
        system = _text(row, file.system_column, where, tokens)
    values: dict[str, float] = {name: number_in(row, rating.column, where) for name, rating in source.ratings.items()}
    values |= {name: computed.of(text) for name, computed in source.computed.items()}
    return _Example(prompt, text, system, values)


def _text(row: Row, column: str, where: Where, tokens: ChatTokens | None) -> str:
    value = cell(row, column, where)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"text is {shown(value)}", where=where.at(column), instead="write a text that is not empty")
    if tokens is not None and (found := first_marker(value, tokens)) is not None:
        instead = "remove it, or choose other chat tokens"
        raise DataError(f"control token {shown(found)} in the text", where=where.at(column), instead=instead)
    return value.strip()


def _conversation(source: RatedText, file: int, number: int, example: _Example, label: str) -> Conversation:
    hidden = _part(source, example.text).startswith("hidden")
    answer = Turn(speaker=ASSISTANT, text=example.text, label=None if hidden else label, gt_label=label if hidden else None)
    return Conversation(
        turns=(Turn(speaker=USER, text=example.prompt), answer),
        tree_id=f"{Path(source.files[file].path).name}:{number}",
        system=example.system,
        mode=source.mode,
    )


def _part(source: RatedText, text: str) -> Part:
    split: Literal["train", "validation"] = "train" if chance(source.seed, "split", text) < source.split_ratio else "validation"
    if chance(source.seed, "hidden", text) >= source.hidden:
        return split
    return "hidden_train" if split == "train" else "hidden_validation"


class _Sample(NamedTuple):
    """Which rows are used: those whose chance is at most their file's threshold."""

    seed: int
    thresholds: list[float]

    def has(self, file: int, number: int) -> bool:
        return chance(self.seed, "sample", file, number) <= self.thresholds[file]


def _sampled(source: RatedText, tokens: ChatTokens | None) -> _Sample:
    if source.limit is None:
        return _Sample(source.seed, [1.0] * len(source.files))
    lowest: list[list[float]] = [[] for _ in source.files]
    for i, row, example in _examples(source, tokens):
        if isinstance(example, _Example):
            # A heap of negatives keeps the `limit` lowest chances of each file.
            place = -chance(source.seed, "sample", i, row.number)
            (heapq.heappush if len(lowest[i]) < source.limit else heapq.heappushpop)(lowest[i], place)
    thresholds = [-1.0] * len(source.files)
    left = source.limit
    by_size = sorted(range(len(lowest)), key=lambda i: len(lowest[i]))
    for rank, i in enumerate(by_size):
        quota = min(len(lowest[i]), left // (len(by_size) - rank))
        left -= quota
        if quota:
            thresholds[i] = sorted(-place for place in lowest[i])[quota - 1]
    return _Sample(source.seed, thresholds)


class _Linear(NamedTuple):
    """Ratings from ``first`` to ``last`` over the attribute's whole range."""

    attribute: Attribute
    first: float
    last: float

    def of(self, value: float) -> int:
        share = min(max((value - self.first) / (self.last - self.first), 0.0), 1.0)
        return self.attribute.low + round(share * (self.attribute.high - self.attribute.low))


class _Bins(NamedTuple):
    """A level more at each edge that is reached."""

    attribute: Attribute
    edges: list[float]

    def of(self, value: float) -> int:
        return self.attribute.low + bisect.bisect_right(self.edges, value)


def _levels(source: RatedText, schema: AttributeSchema, chosen: _Sample, tokens: ChatTokens | None) -> dict[str, _Linear | _Bins]:
    levels: dict[str, _Linear | _Bins] = {}
    for name, rating in source.ratings.items():
        if rating.range is not None:
            levels[name] = _Linear(schema[name], *rating.range)
    binned = {name: array.array("d") for name in (*source.ratings, *source.computed) if name not in levels}
    if not binned:
        return levels
    for i, row, example in _examples(source, tokens):
        if isinstance(example, _Example) and chosen.has(i, row.number) and not _part(source, example.text).startswith("hidden"):
            for name, numbers in binned.items():
                numbers.append(example.values[name])
    return levels | {name: _Bins(schema[name], _edges(numbers, len(schema[name].values))) for name, numbers in binned.items()}


def _edges(values: array.array[float], count: int) -> list[float]:
    """Borders of ``count`` equally filled bins. A value on a border belongs above it, so equal values share a bin."""
    ordered = sorted(values)
    return [ordered[len(ordered) * i // count] for i in range(1, count)] if ordered else []
