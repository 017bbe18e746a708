"""Conversations as typed objects, and the JSON record that carries one: no other room knows a record's keys.

Upstream's keys in upstream's order (NeMo v2.4.1 sft/preprocessing.py, attribute_annotate.py), and ``label_source`` and ``confidence``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from nemo_steerlm.core.errors import DataError, Where, shown
from nemo_steerlm.core.objectives import OBJECTIVES

Mode = str
"""The type of a record, a key of ``OBJECTIVES``: what it teaches. None is plain chat."""

SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.\n\n"
)
"""The system prompt of the tutorial's records, its two newlines included."""

USER = "User"
ASSISTANT = "Assistant"


class _Rest(dict[str, Any]):
    """A record as it was read: its order, and its keys that mean nothing here. Takes no part in comparing conversations."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Rest)

    def __hash__(self) -> int:  # type: ignore[override]
        return 0


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One speaker's text, and the label it has if it has one."""

    speaker: str
    text: str
    label: str | None = None
    """What a prompt says of the text: a person's rating, or a prediction where ``label_source`` says so."""
    language: str | None = None
    """The text's language (key ``lang``), where the data names it beside the label."""
    gt_label: str | None = None
    """A person's label that is not shown to a model: the truth beside a prediction, or one held back to check predictions."""
    label_source: str | None = None
    """The fingerprint of the value model that predicted ``label``; None where a person gave it."""
    confidence: tuple[tuple[str, float], ...] | None = None
    """Probability of each value of a predicted label, by attribute."""
    rest: _Rest = _Rest()

    @property
    def human_label(self) -> str | None:
        """A person's label, wherever it stands: an earlier prediction is never taken for one."""
        return self.gt_label if self.label_source is not None or self.gt_label is not None else self.label

    def predicted(self, label: str, source: str, confidence: Mapping[str, float] | None = None) -> Turn:
        """This turn with a predicted label; a person's moves to ``gt_label``."""
        return msgspec.structs.replace(
            self,
            label=label,
            gt_label=self.human_label,
            label_source=source,
            confidence=None if confidence is None else tuple(confidence.items()),
        )

    def without_human_label(self) -> Turn:
        """This turn without a label that no model predicted: it moves to ``gt_label``."""
        return self if self.label_source is not None else msgspec.structs.replace(self, label=None, gt_label=self.human_label)

    def to_record(self) -> dict[str, Any]:
        """As a record's ``conversations`` have it."""
        return _written(
            self.rest,
            {
                "value": self.text,
                "from": self.speaker,
                "label": self.label,
                "lang": self.language,
                "gt_label": self.gt_label,
                "label_source": self.label_source,
                "confidence": None if self.confidence is None else dict(self.confidence),
            },
        )


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """A system prompt and turns in order."""

    turns: tuple[Turn, ...]
    system: str = SYSTEM_PROMPT
    mask: str = USER
    """The role that is *not* learned."""
    mode: Mode | None = None
    tree_id: str | None = None
    """What it is a branch of, where several records begin alike."""
    rest: _Rest = _Rest()

    def to_record(self) -> dict[str, Any]:
        """As a line of a file has it: what ``from_record`` was given, in its order, with what has changed since."""
        return _written(
            self.rest,
            {
                "conversations": [turn.to_record() for turn in self.turns],
                "tree_id": self.tree_id,
                "system": self.system,
                "mask": self.mask,
                "type": self.mode,
            },
        )

    def to_prompt_record(self) -> dict[str, Any]:
        """As a server has to see it: texts and the labels in the prompt. What people said of a turn beside them stays here."""
        turns = tuple(Turn(speaker=turn.speaker, text=turn.text, label=turn.label) for turn in self.turns)
        return Conversation(turns=turns, system=self.system, mask=self.mask, mode=self.mode).to_record()

    @classmethod
    def from_record(cls, record: Mapping[str, Any], where: Where | None = None) -> Conversation:
        """Read a JSON record. Keys beyond ours mean nothing here; ``to_record`` writes them where they stood.

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
            tree_id=_text(record, "tree_id"),
            rest=_Rest(record),
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
    if isinstance(value, str) and value in OBJECTIVES:
        return value
    raise DataError(f"unknown type {shown(value)}", where=where.at("type"), instead=f"write {' or '.join(OBJECTIVES)}")


def _turn(raw: object, where: Where) -> Turn:
    if not isinstance(raw, Mapping):
        raise DataError(f"turn is {shown(raw)}", where=where, instead='write {"from": …, "value": …}')
    return Turn(
        speaker=_field(raw, "from", str, where),
        text=_field(raw, "value", str, where),
        label=_field(raw, "label", str, where, default=None),
        language=_text(raw, "lang"),
        gt_label=_text(raw, "gt_label"),
        label_source=_text(raw, "label_source"),
        confidence=tuple(found.items()) if isinstance(found := raw.get("confidence"), Mapping) else None,
        rest=_Rest(raw),
    )


def _text(raw: Mapping[str, Any], key: str) -> str | None:
    """A key that upstream does not have: what is no string belongs to somebody else, and stays as it is."""
    value = raw.get(key)
    return value if isinstance(value, str) else None


def _written(rest: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """``rest`` with ``fields`` where they stood in it, new ones at the end, absent ones left out."""
    record = dict(rest)
    for key, value in fields.items():
        if value is not None:
            record[key] = value
        elif isinstance(record.get(key), Mapping if key == "confidence" else str):  # others are not ours: see _text
            del record[key]
    return record


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
