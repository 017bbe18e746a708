"""Objects in a file, one after the other: JSON lines, one JSON array, or the rows of a Parquet file. Its first bytes say which it is."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nemo_steerlm.core.errors import DataError, Where, shown
from nemo_steerlm.core.files import json_line
from nemo_steerlm.core.json_text import Streamed, check_streamed
from nemo_steerlm.core.text_files import BOM, READ_ERRORS, open_binary, open_text, unreadable
from nemo_steerlm.data.records import Record, parse_line, raw_lines
from nemo_steerlm.data.rejects import Rejects

_PARQUET = b"PAR1"


class FileObject(NamedTuple):
    """One object, where it stands, and its text for whoever sets it aside."""

    value: Record
    where: Where
    raw: bytes | str


def is_whole(path: str | Path) -> bool:
    """Whether the file is one Parquet table or JSON array, not lines. Raises DataError where it cannot be read."""
    start = _start(path)
    return start.startswith((_PARQUET, b"["))


def read_whole(path: str | Path) -> Iterator[FileObject]:
    """The objects of one Parquet table or JSON array, streamed.

    Raises DataError where it is broken.
    """
    yield from _rows(path) if _start(path).startswith(_PARQUET) else _items(path)


def read_objects(path: str | Path, rejects: Rejects) -> Iterator[FileObject]:
    """The objects of a file, streamed. A bad line goes to ``rejects``; a broken array or table raises, as ``read_whole`` does."""
    if is_whole(path):
        yield from read_whole(path)
    else:
        for number, raw in raw_lines(path):
            where = Where(file=str(path), line=number)
            with rejects.catch(raw):
                yield FileObject(parse_line(raw, where), where, raw)


def _start(path: str | Path) -> bytes:
    with open_binary(path) as file:
        try:
            return file.read(4096).removeprefix(BOM).lstrip()
        except READ_ERRORS as error:
            raise unreadable(error, path) from error


def _items(path: str | Path) -> Iterator[FileObject]:
    import ijson

    found = False
    repeated: list[tuple[Streamed, str]] = []
    try:
        with open_text(path) as file:
            for i, item in enumerate(ijson.items(file, "item", use_float=True, map_type=functools.partial(Streamed, repeated))):
                where = Where(file=str(path), field=f"[{i}]")
                if not isinstance(item, dict):
                    raise DataError(f"not an object: {shown(item)}", where=where, instead="write an array of objects")
                check_streamed(item, repeated, where)
                found = True
                yield FileObject(item, where, json_line(item))
    except ijson.JSONError as error:
        reason = f"broken JSON array: {str(error).splitlines()[0]}"
        raise DataError(reason, where=Where(file=str(path)), instead="write one array of objects, or one object per line") from error
    except READ_ERRORS as error:
        raise unreadable(error, path) from error
    if not found:
        raise DataError("an empty array", where=Where(file=str(path)), instead="write an array of objects, or one object per line")


def _rows(path: str | Path) -> Iterator[FileObject]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as table:
            check_columns(table.schema_arrow.names, Where(file=str(path)))
            for batch in table.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield FileObject(row, Where(file=str(path), field=f"row {number}"), _text(row))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"broken Parquet: {error}", where=Where(file=str(path)), instead="copy or download it again") from error
    if not number:
        raise DataError("no rows", where=Where(file=str(path)), instead="write one conversation a row")


def check_columns(names: Sequence[str], where: Where) -> None:
    """Raise DataError where several columns have one name: only one of them would be read."""
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"several columns are called {shown(repeated)}", where=where, instead="name each differently")


def _text(row: dict[str, Any]) -> str:
    import json

    return json.dumps(row, ensure_ascii=False, default=str)
