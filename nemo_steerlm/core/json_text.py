"""JSON, read strictly: an object that has a key twice is refused, since readers of JSON disagree about which of the two counts.

Python's own parser takes the last one, silently. To notice both costs it about a seventh more time.
"""

from __future__ import annotations

import collections
import json
import math
from typing import Any

from nemo_steerlm.core.errors import DataError, Where, shown


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object with these keys and values: json's ``object_pairs_hook``. Raises DataError where a key is there twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _twice(collections.Counter(key for key, _ in pairs).most_common(1)[0][0], Where())
    return found


class Streamed(dict[str, Any]):
    """An object as ijson builds it, key by key. Its C code does not pass an error on, so that a second time is noted in ``repeated``."""

    def __init__(self, repeated: list[tuple[Streamed, str]]) -> None:
        super().__init__()
        self._repeated = repeated

    def __setitem__(self, key: str, value: Any) -> None:
        if key in self:
            self._repeated.append((self, key))
        super().__setitem__(key, value)


def check_streamed(value: Any, repeated: list[tuple[Streamed, str]], where: Where) -> None:
    """Raise DataError where one of the objects in ``value``, which stands at ``where``, is among those noted as having a key twice."""
    inside = [value]
    while repeated and inside:
        found = inside.pop()
        for noted, key in repeated:
            if noted is found:
                raise _twice(key, where)
        inside.extend(found.values() if isinstance(found, dict) else found if isinstance(found, list) else ())


def parse_json(raw: bytes) -> Any:
    """What ``raw`` says; Python's NaN, which pandas writes, is null.

    Raises:
        DataError: If an object has a key twice.
        UnicodeDecodeError: If it is no UTF-8.
        ValueError: If it is no JSON, or has a number or half a character that cannot be written as JSON again.
        RecursionError: If it is nested too deeply for a parser that recurs.
    """
    text = raw.decode("utf-8")
    value = _DECODER.decode(text)
    if "\\ud" in text or "\\uD" in text:
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # raises on half a surrogate pair
    return value


def _twice(key: str, where: Where) -> DataError:
    return DataError(f"the key {shown(key)} stands twice in one object", where=where, instead="keep one of them")


def _number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {shown(text)} is too large")
    return number


def _constant(name: str) -> None:
    if name != "NaN":
        raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=once, parse_float=_number, parse_constant=_constant)
