"""Rows of CSV, TSV, JSON and Parquet tables, streamed, with or without a header."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nemo_steerlm.core.errors import DataError, UsageError, Where, nearest, shown
from nemo_steerlm.core.text_files import READ_ERRORS, open_text, unreadable
from nemo_steerlm.data.objects import check_columns, is_whole, read_whole
from nemo_steerlm.data.records import parse_line, raw_lines

csv.field_size_limit(1 << 30)

_PACKED = (".gz", ".zst", ".bz2", ".xz")


class Row(NamedTuple):
    """One row: its last line's number, its cells by column, and its text as read."""

    number: int
    cells: dict[str, Any]
    """By header, or by 0-based number written in digits where the table has none."""
    raw: str
    error: DataError | None = None
    """Why the row cannot be read, with no cells then."""


def read_rows(path: str | Path, *, header: bool = True) -> Iterator[Row]:
    """The rows of a ``.csv``, ``.tsv``, ``.txt`` (tab-separated, without quoting), ``.jsonl``, ``.json`` or ``.parquet`` file.

    All but the last may be packed. A row that cannot be read comes with its error instead of its cells. Raises DataError where the file
    is empty or absent, UsageError where its name says none of these kinds.
    """
    kind = next((suffix for suffix in reversed(Path(path).suffixes) if suffix.lower() not in _PACKED), "").lower()
    if kind in (".jsonl", ".json", ".parquet"):
        yield from _objects(path)
    elif kind in (".csv", ".tsv", ".txt"):
        yield from _cells(path, kind, header=header)
    else:
        raise UsageError(f"{path}: name it .csv, .tsv, .txt (tab-separated), .jsonl, .json or .parquet, or one of these with .gz or .zst")


def cell(row: Row, column: str, where: Where) -> Any:
    """The cell in ``column``. Raises DataError naming the columns there are."""
    if row.error:
        raise row.error
    if column not in row.cells:
        known = list(row.cells)
        raise DataError(f"no column {shown(column)}", where=where.at(column), instead=f"{nearest(column, known)}found: {', '.join(known)}")
    return row.cells[column]


def number_in(row: Row, column: str, where: Where) -> float:
    """The finite number in ``column``. Raises DataError where it is anything else."""
    value = cell(row, column, where)
    try:
        number = float(value) if not isinstance(value, bool) else float("nan")
    except (TypeError, ValueError):
        number = float("nan")
    if not abs(number) < float("inf"):
        raise DataError(f"rating is {shown(value)}", where=where.at(column), instead="write a number")
    return number


def _objects(path: str | Path) -> Iterator[Row]:
    if is_whole(path):
        yield from (Row(number, row.value, str(row.raw)) for number, row in enumerate(read_whole(path), 1))
        return
    for number, raw in raw_lines(path):
        text = raw.decode("utf-8", "backslashreplace").rstrip("\r\n")
        try:
            yield Row(number, parse_line(raw, Where(file=str(path), line=number)), text)
        except DataError as error:
            yield Row(number, {}, text, error)


def _cells(path: str | Path, kind: str, *, header: bool) -> Iterator[Row]:
    where = Where(file=str(path))
    names: list[str] | None = None
    found = False
    try:
        # Undecodable bytes become surrogates, so that one bad row is one error.
        with open_text(path) as file, io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="") as text:
            reader = csv.reader(text) if kind == ".csv" else csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
            for values in reader:
                if not values:
                    continue
                if header and names is None:
                    names = _names(values, Where(file=where.file, line=reader.line_num))
                    continue
                found = True
                yield _row(reader.line_num, values, names, where)
    except READ_ERRORS as error:
        raise unreadable(error, path) from error
    except csv.Error as error:
        raise DataError(f"cannot be read: {error}", where=where) from error
    if not found:
        raise DataError("empty file" if names is None else "no rows below the header", where=where, instead="write one text a row")


def _names(values: list[str], where: Where) -> list[str]:
    names = [value.strip() for value in values]
    check_columns([name for name in names if name], where)
    return names


def _row(number: int, values: list[str], names: list[str] | None, where: Where) -> Row:
    where = Where(file=where.file, line=number)
    raw = "\t".join(values)
    if any("\udc80" <= character <= "\udcff" for character in raw):
        raw = raw.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        return Row(number, {}, raw, DataError("invalid utf-8", where=where, instead="save the file as UTF-8"))
    names = names if names is not None else [str(i) for i in range(len(values))]
    if any(value.strip() for value in values[len(names) :]):
        instead = "put texts in quotes that have the separator in them"
        return Row(number, {}, raw, DataError(f"{len(values)} cells under {len(names)} columns", where=where, instead=instead))
    return Row(number, dict(zip(names, values, strict=False)), raw)
