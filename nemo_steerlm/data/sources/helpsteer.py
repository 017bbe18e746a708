"""HelpSteer and HelpSteer2 as a source. Upstream: NeMo-Aligner v0.7.0 preprocess_helpsteer_data.py and preprocess_helpsteer2_data.py."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from nemo_steerlm.core.attributes import preset
from nemo_steerlm.core.conversation import ASSISTANT, USER, Conversation, Turn
from nemo_steerlm.core.errors import DataError, UsageError, Where, shown
from nemo_steerlm.core.spec import Reference
from nemo_steerlm.data.records import Record, check_conversation, parse_line, raw_lines
from nemo_steerlm.data.sources.source import Placed, Source, SourceContext, level
from nemo_steerlm.data.splits import Split

RATINGS = preset("helpsteer").names
"""Each rated 0 to 4."""
HIGHEST = 4
STRONGEST = 3
"""A pair's preference goes from -3 (the first answer is much better) to 3 (the second is). Upstream labels both answers with it."""

_NAMES: dict[Split, Literal["train", "validation"]] = {"train": "train", "val": "validation"}
_TURN = re.compile(r"\n*<extra_id_1>(User|Assistant)\n")
"""HelpSteer2 writes a prompt of several turns as one string with this between them."""

_PACKED = ("", ".gz", ".zst", ".bz2", ".xz")
_HELPSTEER3 = {
    "preference": "response1",
    "edit": "edited_response",
    "edit_quality": "good_edited_response",
    "feedback": "feedback1",
    "principle": "principle",
}
"""Folders of HelpSteer3, and a key that only its rows have."""
_HELPSTEER3_INSTEAD = "it has no ratings of single answers; use hf:nvidia/HelpSteer2 or hf:nvidia/HelpSteer"


class HelpSteerSource(Source):
    """HelpSteer or HelpSteer2 prompt and response pairs with five ratings."""

    rated: ClassVar = {"": RATINGS, "preference": ("quality",)}

    path: Reference
    """A folder or ``hf:nvidia/HelpSteer`` / ``hf:nvidia/HelpSteer2`` holding train and validation ``.jsonl``, packed or not."""
    preference: bool = False
    """Read HelpSteer2's preference pairs instead of its ratings, as the attribute ``quality``."""

    def references(self) -> tuple[str, ...]:
        """The folder."""
        return (self.path,)

    def read(self, reading: SourceContext) -> Iterator[Placed]:
        """A conversation for each answer: with ``preference`` two a pair, both or none. A prompt of several turns becomes several turns."""
        folder = reading.resolve(self.path)
        files = {split: self._file(folder, name) for split, name in _NAMES.items()}
        for split, name in _NAMES.items():
            file = files[split]
            for number, raw in raw_lines(file):
                where = Where(file=str(file), line=number)
                with reading.rejects.catch(raw):
                    row = parse_line(raw, where)
                    refuse_helpsteer3(row, where)
                    if not self.preference:
                        yield Placed(split, _conversation(row, "response", _ratings(row, where, reading), where, reading))
                    elif _text(row, "split", where) == name:
                        label = _preference(row, where, reading)
                        pair = [_conversation(row, answer, label, where, reading) for answer in ("response_1", "response_2")]
                        yield from (Placed(split, conversation) for conversation in pair)

    def _file(self, folder: Path, name: str) -> Path:
        if folder.is_file():
            if not self.preference:
                _refuse_one_file(folder)
            return folder
        stem = "preference/preference" if self.preference else name
        for suffix in _PACKED:
            if (found := folder / f"{stem}.jsonl{suffix}").is_file():
                return found
        refuse_helpsteer3_folder(folder)
        raise UsageError(f"{folder}: no {stem}.jsonl or {stem}.jsonl.gz")


def _refuse_one_file(file: Path) -> None:
    for number, raw in itertools.islice(raw_lines(file), 1):
        where = Where(file=str(file), line=number)
        refuse_helpsteer3(parse_line(raw, where), where)
    raise UsageError(f"{file}: one file, which would check what it teaches; name the folder that has train.jsonl and validation.jsonl")


def refuse_helpsteer3_folder(folder: Path) -> None:
    """Raise UsageError where ``folder`` is laid out as HelpSteer3."""
    for part in _HELPSTEER3:
        if any((folder / part / f"train.jsonl{suffix}").is_file() for suffix in _PACKED):
            raise UsageError(f"{folder}: {part} of HelpSteer3 is not supported: {_HELPSTEER3_INSTEAD}")


def refuse_helpsteer3(row: Mapping[str, Any], where: Where) -> None:
    """Raise DataError where ``row`` is one of HelpSteer3's: preferences and edits need a head that compares two answers."""
    for part, key in _HELPSTEER3.items():
        if key in row and "context" in row and "response" not in row:
            raise DataError(f"{part} of HelpSteer3 is not supported", where=where, instead=_HELPSTEER3_INSTEAD)


def _ratings(row: Record, where: Where, reading: SourceContext) -> str:
    found = {name: _number(row, name, (0, HIGHEST), where) for name in RATINGS}
    rated = {name: value for name, value in found.items() if value is not None}
    if not rated:
        raise DataError("no ratings", where=where, instead=f"write at least one of {', '.join(RATINGS)}")
    schema = reading.schema
    return schema.encode({name: level(schema[name], value / HIGHEST) for name, value in rated.items() if name in schema.names})


def _preference(row: Record, where: Where, reading: SourceContext) -> str:
    strength = _number(row, "preference_strength", (-STRONGEST, STRONGEST), where)
    if strength is None:
        raise DataError("no preference", where=where.at("preference_strength"), instead="write a whole number")
    return reading.schema.encode({"quality": level(reading.schema["quality"], (strength + STRONGEST) / (2 * STRONGEST))})


def _conversation(row: Record, response: str, label: str, where: Where, reading: SourceContext) -> Conversation:
    texts = _TURN.split(_text(row, "prompt", where))
    turns = [Turn(speaker=speaker, text=text) for speaker, text in zip([USER, *texts[1::2]], texts[::2], strict=True)]
    turns.append(Turn(speaker=ASSISTANT, text=_text(row, response, where), label=label or None))
    return check_conversation(Conversation(turns=tuple(turns), system=reading.system_prompt), where, tokens=reading.tokens)


def _text(row: Record, key: str, where: Where) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise _wrong(row, key, where, "write a string")
    return value


def _number(row: Record, key: str, bounds: tuple[int, int], where: Where) -> int | None:
    """A whole number within ``bounds``, as 3 or 3.0; None where it is null. Raises DataError for anything else, and an absent key."""
    value = row.get(key)
    if value is None and key in row:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or value != value // 1:
        raise _wrong(row, key, where, "write a whole number")
    if not bounds[0] <= value <= bounds[1]:
        instead = f"write a whole number from {bounds[0]} to {bounds[1]}"
        raise DataError(f"label out of range: {key} is {shown(value)}", where=where.at(key), instead=instead)
    return int(value)


def _wrong(row: Record, key: str, where: Where, instead: str) -> DataError:
    found = f"{key} is {shown(row[key])}" if key in row else f"missing key {key!r}"
    return DataError(found, where=where.at(key), instead=instead)
