"""What a source of data is: a part of the manifest that reads itself into conversations."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

import msgspec
from pydantic import Field

from nemo_steerlm.core.attributes import Attribute, AttributeSchema
from nemo_steerlm.core.conversation import SYSTEM_PROMPT, Conversation
from nemo_steerlm.core.spec import Spec
from nemo_steerlm.core.template import ChatTokens
from nemo_steerlm.data.chance import chance
from nemo_steerlm.data.rejects import Rejects
from nemo_steerlm.data.splits import Split

SplitRatio = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Placed(NamedTuple):
    """A conversation and what becomes of it."""

    split: Split
    conversation: Conversation
    teaches: bool = True
    """Whether the value model learns from its labels."""
    to_label: bool = True
    """Whether the value model labels it, for the SteerLM model to learn from."""


class SourceContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a source is read with."""

    resolve: Callable[[str], Path]
    """Where the file or folder of a reference is."""
    schema: AttributeSchema
    """What labels are encoded with: other ratings are left out, absent ones are absent."""
    rejects: Rejects
    """Where records go that cannot be used."""
    folder: Path
    """For temporary files."""
    tokens: ChatTokens = ChatTokens()
    """Control strings that nobody may have typed."""
    system: str | None = None
    """System prompt of conversations that bring none; the tutorial's where None."""
    left_out: collections.Counter[str] = msgspec.field(default_factory=collections.Counter)
    """What was left out on purpose, by reason: it is no error, but somebody may miss it."""

    @property
    def system_prompt(self) -> str:
        """The system prompt of conversations that bring none."""
        return SYSTEM_PROMPT if self.system is None else self.system


class Source(Spec):
    """Base of every kind of source. A subclass is listed in ``data/sources/__init__.py``; the manifest's field is named after it there."""

    rated: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """The attributes that such data has ratings of, under ``""``; under the name of a yes-or-no field those where it is set. Empty
    where only the manifest or the data tells."""
    attribute_fields: ClassVar[tuple[str, ...]] = ()
    """The fields whose keys are names of attributes."""

    def references(self) -> tuple[str, ...]:
        """The files and folders whose content decides what is read."""
        raise NotImplementedError

    def rates(self) -> tuple[str, ...] | None:
        """The attributes that its data has ratings of; None where only reading it tells."""
        if not self.rated:
            return tuple(name for names in self.named().values() for name in names) if self.attribute_fields else None
        return self.rated[next((flag for flag in self.rated if flag and getattr(self, flag)), "")]

    def named(self) -> Mapping[str, tuple[str, ...]]:
        """The attributes that fields of the manifest name, by field."""
        return {field: tuple(getattr(self, field)) for field in self.attribute_fields}

    def read(self, reading: SourceContext) -> Iterator[Placed]:
        """Its conversations, in order, each checked. Raises DataError and UsageError; bad records go to ``reading.rejects``."""
        raise NotImplementedError


def level(attribute: Attribute, share: float) -> int:
    """The level at ``share`` (0 to 1) of the attribute's range: the nearest, halves to the even neighbour, as upstream rounds."""
    return attribute.low + round(share * (attribute.high - attribute.low))


def weighted(placed: Iterable[Placed], weight: float) -> Iterator[Placed]:
    """Every conversation that trains ``weight`` times: as often as its whole part, and once more for a share of them that its rest is.

    Which those are follows from the conversation alone. What validates is there once.
    """
    whole, rest = divmod(weight, 1)
    for place in placed:
        if place.split == "val":
            yield place
            continue
        chosen = rest > 0 and chance("weight", *(turn.text for turn in place.conversation.turns)) < rest
        for _ in range(int(whole) + chosen):
            yield place
