"""What sources have in common whose files hold a conversation an object: files, splits, roles and ratings beside the conversation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field, model_validator

from nemo_steerlm.core.conversation import ASSISTANT, USER, Conversation, Turn
from nemo_steerlm.core.errors import DataError, Where, nearest, shown
from nemo_steerlm.core.spec import Name, Reference, Spec
from nemo_steerlm.data.chance import chance
from nemo_steerlm.data.objects import read_objects
from nemo_steerlm.data.records import Record, check_conversation
from nemo_steerlm.data.sources.source import Placed, Seed, Source, SourceContext, SplitRatio, level
from nemo_steerlm.data.splits import Split

SYSTEM = "System"
"""Stands for a system prompt among the turns."""

_MISSING: Any = object()


class RatingKey(Spec):
    """Where an attribute's ratings of a conversation's last answer are, and which of them mean its lowest and highest level."""

    key: Annotated[str, Field(min_length=1, max_length=128)]
    """The key or column; one inside another with a dot between, such as ``scores.quality``."""
    range: tuple[float, float]
    """The ratings that map to the attribute's low and high, linearly, clamped outside."""

    @model_validator(mode="after")
    def _differ(self) -> RatingKey:
        if self.range[0] == self.range[1]:
            raise ValueError(f"range needs two different ratings, found {self.range[0]} twice")
        return self


class Example(NamedTuple):
    """A conversation as its source has it, and what its last answer was rated: shares (0 to 1) of each attribute's range."""

    turns: list[tuple[str, str]]
    """Speaker and text; the speaker may be ``SYSTEM``."""
    ratings: Mapping[str, float]


class RowSource(Source):
    """Base of sources whose files are JSON lines, a JSON array or Parquet, an example or several in each object."""

    path: Reference
    """A ``.jsonl`` or ``.json`` file, packed or not, or ``.parquet``; or ``hf:OWNER/NAME/FILE`` for one on the Hugging Face hub."""
    split_ratio: SplitRatio = 0.95
    """Share of first questions whose conversations train; the others validate."""
    seed: Seed = 10
    """Seed of the split."""

    def references(self) -> tuple[str, ...]:
        """The file."""
        return (self.path,)

    def examples(self, row: Record, where: Where) -> list[Example]:
        """What one object has. Raises DataError."""
        raise NotImplementedError

    def leaves_out(self, row: Record) -> str | None:  # noqa: ARG002  # for subclasses
        """Why the object is left out on purpose; None where it is read."""
        return None

    def read(self, reading: SourceContext) -> Iterator[Placed]:
        """Every example, in file order; one without ratings is only to be labelled. Examples that begin alike are in one split."""
        for row, where, raw in read_objects(reading.resolve(self.path), reading.rejects):
            if why := self.leaves_out(row):
                reading.left_out[why] += 1
                continue
            with reading.rejects.catch(raw):
                # All of an object or nothing of it.
                yield from [self._placed(example, reading, where) for example in self.examples(row, where)]

    def _placed(self, example: Example, reading: SourceContext, where: Where) -> Placed:
        schema = reading.schema
        label = schema.encode({name: level(schema[name], share) for name, share in example.ratings.items() if name in schema.names})
        turns = [Turn(speaker=speaker, text=text) for speaker, text in example.turns if speaker != SYSTEM]
        if not any(turn.speaker == ASSISTANT for turn in turns):
            raise DataError("no answer", where=where, instead="write a conversation with at least one turn of the assistant")
        if not any(turn.speaker == USER for turn in turns):
            raise DataError("no question", where=where, instead="write a conversation with at least one turn of the user")
        last = max(i for i, turn in enumerate(turns) if turn.speaker == ASSISTANT)
        turns[last] = Turn(speaker=ASSISTANT, text=turns[last].text, label=label or None)
        system = "\n\n".join(text for speaker, text in example.turns if speaker == SYSTEM) or reading.system_prompt
        conversation = check_conversation(Conversation(turns=tuple(turns), system=system), where, tokens=reading.tokens)
        split: Split = "train" if chance(self.seed, "split", turns[0].text) < self.split_ratio else "val"
        return Placed(split, conversation, teaches=bool(label))


class MappedSource(RowSource):
    """Base of those whose ratings stand beside the conversation, under keys that the manifest names."""

    attribute_fields: ClassVar = ("ratings",)

    ratings: Annotated[dict[Name, RatingKey], Field(min_length=1, max_length=32)]
    """Where the ratings of the last answer are, by attribute. A conversation that has none of them is only labelled."""

    def rated_shares(self, row: Record, where: Where) -> dict[str, float]:
        """What the ratings of one object say, those that it has."""
        found = {name: _rating(row, rating, where) for name, rating in self.ratings.items()}
        return {name: share for name, share in found.items() if share is not None}


def _rating(row: Record, rating: RatingKey, where: Where) -> float | None:
    value: Any = row
    for key in rating.key.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return None if value is None else share(value, rating.range, where.at(rating.key))


def share(value: Any, bounds: tuple[float, float], where: Where) -> float:
    """Where ``value``, a number or its text, lies between ``bounds``: 0 to 1, clamped outside. Raises DataError for what is no number."""
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not abs(number) < float("inf"):
        raise DataError(f"rating is {shown(value)}", where=where, instead="write a number")
    return min(max((number - bounds[0]) / (bounds[1] - bounds[0]), 0.0), 1.0)


def turns_of(row: Record, key: str, keys: tuple[str, str], roles: Mapping[str, str], where: Where) -> list[tuple[str, str]]:
    """The turns in a list of objects: ``keys`` are those of role and text, ``roles`` what each role is called here. Raises DataError."""
    found = field(row, key, list, where)
    turns = []
    for i, raw in enumerate(found):
        at = where.at(f"{key}[{i}]")
        if not isinstance(raw, dict):
            raise DataError(f"turn is {shown(raw)}", where=at, instead=f'write {{"{keys[0]}": …, "{keys[1]}": …}}')
        role = field(raw, keys[0], str, at)
        if role.lower() not in roles:
            known = ", ".join(roles)
            raise DataError(f"role {shown(role)} is not supported", where=at.at(keys[0]), instead=f"{nearest(role, roles)}known: {known}")
        turns.append((roles[role.lower()], _content(raw, keys[1], at)))
    return turns


def _content(turn: Record, key: str, where: Where) -> str:
    """A turn's text; parts of text are put together. Raises DataError for other parts, and where a tool is called instead."""
    content = turn.get(key)
    if turn.get("tool_calls") or turn.get("function_call"):
        raise DataError("a call of a tool is not supported", where=where, instead="write what was said, or leave the conversation out")
    if isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else part
            if not isinstance(part, dict) or kind != "text" or not isinstance(part.get("text"), str):
                raise DataError(f"part of type {shown(kind)} is not supported", where=where.at(key), instead="write text")
        return "".join(part["text"] for part in content)
    text: str = field(turn, key, str, where)
    return text


def field(row: Record, key: str, kind: type, where: Where) -> Any:
    """The value under ``key``. Raises DataError where it is missing or of another kind."""
    value = row.get(key, _MISSING)
    if value is _MISSING:
        known = ", ".join(map(str, row)) or "no keys"
        raise DataError(f"missing key {key!r}", where=where.at(key), instead=f"{nearest(key, map(str, row))}found: {known}")
    if not isinstance(value, kind):
        raise DataError(f"{key} is {shown(value)}", where=where.at(key), instead=f"write a {'string' if kind is str else 'list'}")
    return value


def optional_text(row: Record, key: str, where: Where) -> str:
    """The text under ``key``; empty where it is missing or null."""
    text: str = "" if row.get(key) is None else field(row, key, str, where)
    return text
