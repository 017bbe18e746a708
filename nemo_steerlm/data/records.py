"""JSON lines in and out: readers stream and name file and line in every error, writers are atomic and write upstream's bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from nemo_steerlm.core.errors import DataError, Where, shown
from nemo_steerlm.core.files import atomic_write, open_binary

Record = dict[str, Any]


class Line(NamedTuple):
    """One line of a file: its 1-based number, its bytes, and the object in it."""

    number: int
    raw: bytes
    record: Record


def parse_line(raw: bytes, where: Where) -> Record:
    """The JSON object in one line. Raises DataError for broken UTF-8, broken JSON, or JSON that is not an object."""
    try:
        record = msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        raise DataError(f"broken JSON: {error}", where=where, instead="write one JSON object a line") from error
    except UnicodeDecodeError as error:
        raise DataError(f"invalid UTF-8 at byte {error.start}", where=where, instead="save the file as UTF-8") from error
    except RecursionError as error:
        raise DataError("nested too deeply", where=where) from error
    if not isinstance(record, dict):
        raise DataError(f"not an object: {shown(record)}", where=where, instead="write one JSON object a line")
    return record


def raw_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of a (possibly gzipped) file, blank ones left out. Raises DataError where it is empty or torn."""
    number = found = 0
    try:
        with open_binary(path) as file:
            for number, raw in enumerate(file, 1):
                if raw.strip():
                    found += 1
                    yield number, raw
    except (EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"cannot be read: {error.strerror}", where=Where(file=str(path))) from error
        raise DataError(f"broken gzip: {error}", where=Where(file=str(path), line=number or None)) from error
    if not found:
        raise DataError("empty file", where=Where(file=str(path)), instead="write one JSON object a line")


def read_lines(path: str | Path) -> Iterator[Line]:
    """Every object of a JSONL file, in order. Raises DataError with file and line."""
    for number, raw in raw_lines(path):
        yield Line(number, raw, parse_line(raw, Where(file=str(path), line=number)))


def dump(record: Record) -> str:
    """One line as upstream writes it: ``json.dumps`` with its own separators, nothing escaped that need not be, newline at the end."""
    return json.dumps(record, ensure_ascii=False) + "\n"


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Write ``records`` to ``path``, whole or not at all. Returns how many there were."""
    count = 0
    with atomic_write(path) as file:
        for count, record in enumerate(records, 1):
            file.write(dump(record))
    return count
