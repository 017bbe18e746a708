"""What a model is asked in evaluation and in bootstrap rounds: conversations up to an answer, in the language of that answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from nemo_steerlm.core.attributes import AttributeSchema
from nemo_steerlm.core.conversation import Conversation, Turn
from nemo_steerlm.core.labels import LANGUAGE_KEY, split
from nemo_steerlm.data.records import read_conversations


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """Something to answer."""

    conversation: Conversation
    """Without labels; its last turn is the one to answer."""
    language: str | None = None
    """What the answer's label says, or else that of the turn before; None where the schema has no languages."""


def questions(path: Path, schema: AttributeSchema, *, every: bool = False) -> list[Question]:
    """Of each conversation in ``path`` the part before its first answer (before ``every`` answer), each distinct one once."""
    questions = (question for conversation in read_conversations(path) for question in questions_of(conversation, schema, every=every))
    return list(dict.fromkeys(questions))


def questions_of(conversation: Conversation, schema: AttributeSchema, *, every: bool = False) -> Iterator[Question]:
    """The questions of one conversation, as ``questions``."""
    for i, turn in enumerate(conversation.turns):
        if turn.speaker != conversation.mask and i > 0:
            asked = tuple(Turn(speaker=t.speaker, text=t.text) for t in conversation.turns[:i])
            language = _language((turn.label, conversation.turns[i - 1].label), schema)
            plain = Conversation(turns=asked, system=conversation.system, mask=conversation.mask)
            yield Question(conversation=plain, language=language)
            if not every:
                return


def _language(labels: Iterable[str | None], schema: AttributeSchema) -> str | None:
    languages = (field.text for label in labels for field in split(label or "") if field.name == LANGUAGE_KEY)
    return next((language for language in languages if language in schema.languages), schema.default_language)
