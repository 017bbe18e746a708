"""JSON lines in and out: readers stream and name file and line in every error, writers are atomic and write upstream's bytes."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nemo_steerlm.core.attributes import AttributeSchema
from nemo_steerlm.core.conversation import ASSISTANT, Conversation
from nemo_steerlm.core.errors import DataError, Where, shown
from nemo_steerlm.core.files import atomic_write, json_line
from nemo_steerlm.core.json_text import Streamed, check_streamed, parse_json
from nemo_steerlm.core.template import ChatTokens, check_typed_text
from nemo_steerlm.core.text_files import BOM, READ_ERRORS, open_text, unreadable
from nemo_steerlm.data.rejects import Rejects

Record = dict[str, Any]


class Line(NamedTuple):
    """One line of a file: its 1-based number, its bytes, and the object in it."""

    number: int
    raw: bytes
    record: Record


def parse_line(raw: bytes, where: Where) -> Record:
    """The JSON object in one line.

    Raises DataError for broken UTF-8, broken JSON, a key that an object has twice, or JSON that is not an object.
    """
    raw = raw.removeprefix(BOM)  # of each file where several were put together
    try:
        record = parse_json(raw)
    except UnicodeDecodeError as error:
        raise DataError(f"invalid UTF-8 at byte {error.start}", where=where, instead="save the file as UTF-8") from error
    except ValueError as error:
        raise DataError(f"broken JSON: {error}", where=where, instead="write one JSON object per line") from error
    except RecursionError:
        record = _parse_deep(raw, where)
    except DataError as error:
        raise error.located(file=where.file, line=where.line) from error
    if not isinstance(record, dict):
        what = "a JSON array, not an object" if isinstance(record, list) else f"not an object: {shown(record)}"
        raise DataError(what, where=where, instead="write one JSON object per line")
    return record


def _parse_deep(raw: bytes, where: Where) -> Any:
    """``raw`` decoded without recursion: slower, but a tree may be as deep as memory allows."""
    import ijson

    repeated: list[tuple[Streamed, str]] = []
    builder = ijson.ObjectBuilder(map_type=functools.partial(Streamed, repeated))
    try:
        for event, value in ijson.basic_parse(raw, use_float=True):
            builder.event(event, value)
        check_streamed(builder.value, repeated, where)
    except ijson.JSONError as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"broken JSON: {reason}", where=where, instead="write one JSON object per line") from error
    return builder.value


def parse_conversation(raw: bytes, where: Where) -> Conversation:
    """The conversation in one line. Raises DataError as ``parse_line`` and ``Conversation.from_record`` do."""
    return Conversation.from_record(parse_line(raw, where), where)


def check_conversation(
    conversation: Conversation, where: Where | None = None, *, tokens: ChatTokens | None = None, schema: AttributeSchema | None = None
) -> Conversation:
    """``conversation``, once everything that makes it useless for training has been looked for.

    Raises DataError where the assistant speaks first, somebody typed one of ``tokens``' markers, or a label does not fit ``schema``.
    The last two are checked only where given.
    """
    where = where or Where()
    if conversation.turns[0].speaker == ASSISTANT:
        at = where.at("conversations[0].from")
        raise DataError("the conversation starts with the assistant", where=at, instead="begin with the user's turn")
    if tokens is not None:
        check_typed_text(conversation, tokens, where)
    if schema is not None:
        for i, turn in enumerate(conversation.turns):
            _check_label(turn.label, schema, where.at(f"conversations[{i}].label"))
    return conversation


def _check_label(label: str | None, schema: AttributeSchema, where: Where) -> None:
    if label is None:
        return
    try:
        schema.parse(label)
    except DataError as error:
        raise DataError(error.reason, where=where, instead=error.instead) from error


def raw_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of a file, packed or not, blank ones left out. Raises DataError where it is empty, torn or no text."""
    number = found = 0
    try:
        with open_text(path) as file:
            for number, raw in enumerate(file, 1):
                if raw.strip():
                    found += 1
                    yield number, raw
    except READ_ERRORS as error:
        raise unreadable(error, path, number or None) from error
    if not found:
        raise DataError("empty file", where=Where(file=str(path)), instead="write one JSON object per line")


def read_lines(path: str | Path) -> Iterator[Line]:
    """Every object of a JSONL file, in order. Raises DataError with file and line."""
    for number, raw in raw_lines(path):
        yield Line(number, raw, parse_line(raw, Where(file=str(path), line=number)))


def read_conversations(path: str | Path) -> Iterator[Conversation]:
    """Every conversation of a JSONL file, in order. Raises DataError with file, line and field."""
    for number, raw in raw_lines(path):
        yield parse_conversation(raw, Where(file=str(path), line=number))


def read_checked(
    path: str | Path, rejects: Rejects, *, tokens: ChatTokens | None = None, schema: AttributeSchema | None = None
) -> Iterator[Conversation]:
    """Every conversation, each checked as ``check_conversation`` does. Bad ones go to ``rejects``, which raises by default."""
    for number, raw in raw_lines(path):
        where = Where(file=str(path), line=number)
        with rejects.catch(raw):
            yield check_conversation(parse_conversation(raw, where), where, tokens=tokens, schema=schema)


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Write ``records`` to ``path``, whole or not at all. Returns how many there were."""
    count = 0
    with atomic_write(path) as file:
        for record in records:
            file.write(json_line(record))
            count += 1  # the number is what remains after the loop
    return count
