"""HelpSteer and HelpSteer2 as conversation records. Upstream: NeMo-Aligner v0.7.0 preprocess_helpsteer_data.py and …2_data.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nemo_steerlm.core.attributes import Attribute, AttributeSchema, preset
from nemo_steerlm.core.conversation import ASSISTANT, SYSTEM_PROMPT, USER, Mode
from nemo_steerlm.core.errors import DataError, UsageError, Where, shown
from nemo_steerlm.core.template import ChatTokens
from nemo_steerlm.data.records import Record, check_record, parse_line, raw_lines
from nemo_steerlm.data.rejects import Rejects

Split = Literal["train", "validation"]

RATINGS = preset("helpsteer")
PREFERENCE = AttributeSchema(
    attributes=(Attribute(name="quality", low=-3, high=3, description="how much the second answer is preferred to the first"),),
    name="helpsteer2-preference",
)
"""Upstream labels both answers of a pair with the preference strength, from -3 (the first is much better) to 3 (the second is)."""

_TURN = re.compile(r"\n*<extra_id_1>(User|Assistant)\n")
"""HelpSteer2 writes a prompt of several turns as one string with this between them."""


class Reading(NamedTuple):
    """How rows become records."""

    mode: Mode = "VALUE_TO_TEXT"
    system: str = SYSTEM_PROMPT
    tokens: ChatTokens | None = None
    """Control strings that nobody may have typed; not looked at where None."""


def read_helpsteer(
    path: str | Path, split: Split, rejects: Rejects, *, preference: bool = False, reading: Reading | None = None
) -> Iterator[Record]:
    """The records of one split, in file order; with ``preference``, two a pair: the first answer, then the second.

    ``path`` is a file, or a folder with ``train.jsonl`` and ``validation.jsonl`` (or ``.gz``) and ``preference/preference.jsonl``. A
    prompt of several turns becomes several turns: upstream leaves the control tokens inside the first one.
    """
    reading = reading or Reading()
    file = _file(Path(path), split, preference=preference)
    for number, raw in raw_lines(file):
        where = Where(file=str(file), line=number)
        with rejects.catch(raw):
            row = parse_line(raw, where)
            if preference:
                if _value(row, "split", str, where) == split:
                    yield from list(_pair(row, where, reading))
            else:
                label = {name: _value(row, name, int, where) for name in RATINGS.names}
                yield _record(row, "response", _encoded(RATINGS, label, where), where, reading)


def _pair(row: Record, where: Where, reading: Reading) -> Iterator[Record]:
    label = _encoded(PREFERENCE, {"quality": _value(row, "preference_strength", int, where)}, where)
    for response in ("response_1", "response_2"):
        yield _record(row, response, label, where, reading)


def _encoded(schema: AttributeSchema, values: dict[str, int], where: Where) -> str:
    try:
        return schema.encode(values)
    except DataError as error:
        raise DataError(error.reason, where=where.at(error.where.field or "label"), instead=error.instead) from error


def _record(row: Record, response: str, label: str, where: Where, reading: Reading) -> Record:
    texts = _TURN.split(_value(row, "prompt", str, where))
    turns: list[Record] = [{"value": text, "from": speaker} for speaker, text in zip([USER, *texts[1::2]], texts[::2], strict=True)]
    turns.append({"value": _value(row, response, str, where), "from": ASSISTANT, "label": label})
    record = {"conversations": turns, "system": reading.system, "mask": USER, "type": reading.mode}
    check_record(record, where, tokens=reading.tokens)
    return record


def _value(row: Record, key: str, kind: type, where: Where) -> Any:
    value = row.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        found = f"{key} is {shown(value)}" if key in row else f"missing key {key!r}"
        instead = "write a string" if kind is str else "write a whole number"
        raise DataError(found, where=where.at(key), instead=instead)
    return value


def _file(path: Path, split: Split, *, preference: bool) -> Path:
    if path.is_file():
        return path
    stem = path / "preference" / "preference" if preference else path / split
    for suffix in (".jsonl", ".jsonl.gz"):
        if (found := Path(f"{stem}{suffix}")).is_file():
            return found
    raise UsageError(f"{path}: no {stem.relative_to(path)}.jsonl or {stem.relative_to(path)}.jsonl.gz")
