"""Turns that people rated: which taught the value model, and which are left to check it with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path

import msgspec

from nemo_steerlm.core.attributes import AttributeSchema
from nemo_steerlm.core.conversation import Conversation
from nemo_steerlm.core.errors import Where
from nemo_steerlm.data.records import read_lines


class RatedText(msgspec.Struct, frozen=True, kw_only=True):
    """A turn's text and its human values."""

    text: str
    values: dict[str, int]


class Turns(msgspec.Struct, frozen=True, kw_only=True):
    """Rated turns of a pipeline. A turn that several branches of a tree share is there once."""

    taught: list[RatedText]
    """What the value model learned from."""
    held_out: list[RatedText]
    """What it did not."""
    predicted: list[dict[str, int]]
    """Its labels of the latter."""
    conversations: list[Conversation]
    """Each of the latter with what stands before it, its own turn last, without labels."""


def rated_turns(teaching: Path, labelled: Iterable[Path], schema: AttributeSchema) -> Turns:
    """The rated turns of ``teaching``, and those of the ``labelled`` files that are not among them."""
    taught: dict[int, RatedText] = {}
    for line in read_lines(teaching):
        conversation = Conversation.from_record(line.record, Where(file=str(teaching), line=line.number))
        for turn, place in zip(conversation.turns, places(turn.text for turn in conversation.turns), strict=True):
            if turn.label is not None and turn.speaker != conversation.mask:
                taught.setdefault(place, RatedText(text=turn.text, values=schema.parse(turn.label).values))
    turns = Turns(taught=list(taught.values()), held_out=[], predicted=[], conversations=[])
    seen = set(taught)
    for path in labelled:
        for line in read_lines(path):
            conversation = Conversation.from_record(line.record, Where(file=str(path), line=line.number))
            for i, place in enumerate(places(turn.text for turn in conversation.turns)):
                turn, record = conversation.turns[i], line.record["conversations"][i]
                human = record.get("gt_label")
                if human is None or turn.label is None or turn.speaker == conversation.mask or place in seen:
                    continue
                seen.add(place)
                turns.held_out.append(RatedText(text=turn.text, values=schema.parse(human).values))
                turns.predicted.append(schema.parse(turn.label).values)
                before = tuple(msgspec.structs.replace(t, label=None) for t in conversation.turns[: i + 1])
                turns.conversations.append(msgspec.structs.replace(conversation, turns=before))
    return turns


def places(texts: Iterable[str]) -> Iterator[int]:
    """For each turn's text what tells it from others, equal ones after other turns included."""
    return accumulate((hash(text) for text in texts), lambda before, text: hash((before, text)))
