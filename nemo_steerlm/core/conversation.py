"""Conversations as typed objects, and the JSON record that carries one (upstream's keys: steerlm preprocessing.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import msgspec

from nemo_steerlm.core.errors import DataError, Where, shown

Mode = Literal["TEXT_TO_VALUE", "VALUE_TO_TEXT"]
"""What a record teaches: reading labels (value model) or writing under them (SteerLM model). None is plain chat."""

MODES: tuple[Mode, ...] = get_args(Mode)

SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.\n\n"
)
"""The system prompt of the tutorial's records, its two newlines included."""

USER = "User"
ASSISTANT = "Assistant"


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One speaker's text, and the label it has if it has one."""

    speaker: str
    text: str
    label: str | None = None


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """A system prompt and turns in order."""

    turns: tuple[Turn, ...]
    system: str = SYSTEM_PROMPT
    mask: str = USER
    """The role that is *not* learned."""
    mode: Mode | None = None

    @classmethod
    def from_record(cls, record: Mapping[str, Any], where: Where | None = None) -> Conversation:
        """Read a JSON record. Keys beyond upstream's are ignored here and kept by whoever holds the record.

        Raises DataError naming the field that is missing or of the wrong kind, an unknown ``type``, or a ``mask`` that is nobody's
        role (upstream: AssertionError "mask role not in the conversation").
        """
        where = where or Where()
        turns = _field(record, "conversations", list, where)
        if not turns:
            raise DataError("no turns", where=where.at("conversations"), instead="write at least one turn")
        at = where.at("conversations")
        conversation = cls(
            turns=tuple(_turn(turn, at.at(f"[{i}]")) for i, turn in enumerate(turns)),
            system=_field(record, "system", str, where),
            mask=_field(record, "mask", str, where, default=USER),
            mode=_mode(record.get("type"), where),
        )
        speakers = dict.fromkeys(turn.speaker for turn in conversation.turns)
        if conversation.mask not in speakers:
            raise DataError(
                f"mask role {shown(conversation.mask)} is not in the conversation",
                where=where.at("mask"),
                instead=f"name one of its speakers: {', '.join(speakers)}",
            )
        return conversation


def _mode(value: object, where: Where) -> Mode | None:
    if value is None:
        return None
    for mode in MODES:
        if value == mode:
            return mode
    raise DataError(f"unknown type {shown(value)}", where=where.at("type"), instead=f"write {' or '.join(MODES)}")


def _turn(raw: object, where: Where) -> Turn:
    if not isinstance(raw, Mapping):
        raise DataError(f"turn is {shown(raw)}", where=where, instead='write {"from": …, "value": …}')
    return Turn(
        speaker=_field(raw, "from", str, where),
        text=_field(raw, "value", str, where),
        label=_field(raw, "label", str, where, default=None),
    )


_MISSING: Any = object()


def _field(raw: Mapping[str, Any], key: str, kind: type, where: Where, default: Any = _MISSING) -> Any:
    value = raw.get(key, _MISSING)
    if value is _MISSING or (value is None and default is not _MISSING):
        if default is _MISSING:
            raise DataError(f"missing key {key!r}", where=where.at(key), instead=f"found: {', '.join(map(str, raw)) or 'no keys'}")
        return default
    if not isinstance(value, kind):
        raise DataError(f"{key} is {shown(value)}", where=where.at(key), instead=f"write a {'string' if kind is str else 'list'}")
    return value
