"""Turns that people rated: which taught the value model, and which are left to check it with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path

import msgspec

from nemo_steerlm.core.attributes import AttributeSchema
from nemo_steerlm.core.conversation import Conversation, Turn
from nemo_steerlm.data.records import read_conversations


class RatedTurn(msgspec.Struct, frozen=True, kw_only=True):
    """A turn's text and its human values."""

    text: str
    values: dict[str, int]


class RatedTurns(msgspec.Struct, frozen=True, kw_only=True):
    """Rated turns of a pipeline. A turn that several branches of a tree share is there once."""

    taught: list[RatedTurn]
    """What the value model learned from."""
    held_out: list[RatedTurn]
    """What it did not."""
    predicted: list[dict[str, int]]
    """Its labels of the latter."""
    conversations: list[Conversation]
    """Each of the latter with what stands before it, its own turn last, without labels."""


def rated_turns(teaching: Path, labelled: Iterable[Path], schema: AttributeSchema) -> RatedTurns:
    """The rated turns of ``teaching``, and those of the ``labelled`` files that are not among them."""
    taught: dict[int, RatedTurn] = {}
    for conversation in read_conversations(teaching):
        for turn, place in zip(conversation.turns, places(turn.text for turn in conversation.turns), strict=True):
            if turn.label is not None and turn.speaker != conversation.mask:
                taught.setdefault(place, RatedTurn(text=turn.text, values=schema.parse(turn.label).values))
    turns = RatedTurns(taught=list(taught.values()), held_out=[], predicted=[], conversations=[])
    seen = set(taught)
    for path in labelled:
        for conversation in read_conversations(path):
            for i, place in enumerate(places(turn.text for turn in conversation.turns)):
                turn = conversation.turns[i]
                if turn.gt_label is None or turn.label is None or turn.speaker == conversation.mask or place in seen:
                    continue
                seen.add(place)
                turns.held_out.append(RatedTurn(text=turn.text, values=schema.parse(turn.gt_label).values))
                turns.predicted.append(schema.parse(turn.label).values)
                before = tuple(Turn(speaker=t.speaker, text=t.text) for t in conversation.turns[: i + 1])
                turns.conversations.append(Conversation(turns=before, system=conversation.system, mask=conversation.mask))
    return turns


def places(texts: Iterable[str]) -> Iterator[int]:
    """For each turn's text what tells it from others, equal ones after other turns included."""
    return accumulate((hash(text) for text in texts), lambda before, text: hash((before, text)))
