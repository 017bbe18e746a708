"""Which columns of rows hold prompts, answers and ratings, and on which scale people rated."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from nemo_steerlm.core.attributes import Attribute
from nemo_steerlm.core.errors import UsageError, nearest

Cells = Mapping[str, Any]

MOST_OWN_LEVELS = 10
"""Whole numbers on a scale of at most so many stay as they are; others become five levels."""
_SCALES = (
    (0, 1),
    (-1, 1),
    (0, 2),
    (1, 3),
    (-2, 2),
    (1, 5),
    (0, 4),
    (0, 5),
    (1, 7),
    (-3, 3),
    (-4, 4),
    (1, 10),
    (0, 10),
    (-5, 5),
    (1, 100),
    (0, 100),
)
"""Scales that people rate on, the narrowest first; of equally wide ones that which is commoner."""
_PROMPTS = ("prompt", "question", "instruction", "query", "input", "user", "request", "context")
_ANSWERS = (
    "response",
    "answer",
    "output",
    "completion",
    "reply",
    "generation",
    "assistant",
    "text",
    "body",
    "review",
    "comment",
    "content",
)
_SYSTEMS = ("system", "system_prompt")
_NO_RATING = re.compile(
    r"(^|[_ .])(id|idx|index|uuid|key|time|timestamp|date|year|seed|user|annotator)($|[_ .])"
    r"|(^|[_ .])(count|length|len|num|number|tokens?|words|chars)($|[_ .])|^$|^unnamed",
    re.IGNORECASE,
)
"""Columns of numbers that are no ratings, by their name."""


class GuessedRating(msgspec.Struct, frozen=True, kw_only=True):
    """A column of ratings and the attribute it becomes."""

    key: str
    attribute: Attribute
    range: tuple[float, float] | None
    """The ratings that mean the attribute's lowest and highest level; None: five equally filled bins."""
    share: float
    """Of the rows that were looked at, how many have a rating."""


def text_columns(
    rows: Sequence[Cells], prompt: str | None, answer: str | None, without: set[str]
) -> tuple[str | None, str | None, str | None]:
    """The columns of prompt, answer and system prompt; the first two may be given. None where there seems to be none."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lengths: dict[str, float] = {}
    chats: dict[str, float] = {}
    for key in keys:
        if key in without:
            continue
        texts = [value for row in rows if isinstance(value := row.get(key), str) and value.strip()]
        if any(_is_chat(row.get(key)) for row in rows):
            chats[key] = 0
        elif len(texts) > len(rows) / 2 and not all(number_of(text) is not None for text in texts):
            lengths[key] = statistics.fmean(len(text) for text in texts)
    system = next((key for key in lengths if key.lower() in _SYSTEMS), None)
    lengths.pop(system or "", None)
    answer = answer or _named(lengths, _ANSWERS)
    prompt = prompt or _named({key: n for key, n in (lengths | chats).items() if key != answer}, _PROMPTS) or next(iter(chats), None)
    if answer is None:
        # What people rate is the longest text there is.
        left = {key: length for key, length in lengths.items() if key != prompt}
        answer = max(left, key=lambda key: left[key], default=None)
    return prompt, answer, system


def _is_chat(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "role" in value[0]


def _named(lengths: Mapping[str, float], names: Sequence[str]) -> str | None:
    by_name = {key.lower(): key for key in lengths}
    exact = next((by_name[name] for name in names if name in by_name), None)
    return exact or next((key for name in names for lower, key in by_name.items() if name in re.split(r"\W|_", lower)), None)


def rating_columns(rows: Sequence[Cells], wanted: Sequence[str], *, bins: bool) -> tuple[tuple[GuessedRating, ...], list[str]]:
    """The columns of ratings; and why some columns of numbers, or wanted ones, are none.

    Raises:
        UsageError: If there is no column of a wanted name.
    """
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for key, value in _flat(row):
            columns.setdefault(key, []).append(value)
    for key in wanted:
        if key not in columns:
            raise UsageError(f"no column {key!r}; {nearest(key, columns)}found: {', '.join(columns)}")
    found, notes, names = [], [], set[str]()
    for key, values in columns.items():
        given = [value for value in values if value not in (None, "")]
        numbers = [number for value in given if (number := number_of(value)) is not None]
        if key not in wanted and (wanted or _NO_RATING.search(key) or len(numbers) < 0.8 * len(given)):
            continue
        if len(set(numbers)) < 2:
            notes += [f"{key} has one value only"] if numbers or key in wanted else []
            continue
        if len(set(numbers)) == len(numbers) > 20 and all(number == int(number) for number in numbers):
            notes.append(f"{key} counts rows")
            continue
        name = _attribute_name(key, names)
        names.add(name)
        found.append(_rating(key, name, numbers, min(1.0, len(numbers) / len(rows)), bins=bins))
    return tuple(found), notes


def _rating(key: str, name: str, numbers: Sequence[float], share: float, *, bins: bool) -> GuessedRating:
    least, most = min(numbers), max(numbers)
    # A scale that goes below zero is one that somebody rated below zero on.
    low, high = next(((a, b) for a, b in _SCALES if a <= least and most <= b and (a >= 0 or least < 0)), (least, most))
    whole = all(number == int(number) for number in numbers) and high - low < MOST_OWN_LEVELS
    if whole:
        attribute = Attribute(name=name, low=int(low), high=int(high), default=round(statistics.median(numbers)))
        return GuessedRating(key=key, attribute=attribute, range=(low, high), share=share)
    attribute = Attribute(name=name, default=2)
    return GuessedRating(key=key, attribute=attribute, range=None if bins else (low, high), share=share)


def _flat(row: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Columns, and those inside objects with a dot between; of a list of numbers each number."""
    for key, value in row.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", found) for inner, found in value.items() if not isinstance(found, dict | list))
        elif isinstance(value, list):
            yield from ((key, item) for item in value if not isinstance(item, dict | list))
        else:
            yield key, value


def number_of(value: Any) -> float | None:
    """The finite number that ``value`` is or says; None for anything else, booleans too."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None


def _attribute_name(key: str, taken: set[str]) -> str:
    name = re.sub(r"\W+", "_", key.rpartition(".")[2]).strip("_").lower() or "rating"
    name = f"rating_{name}" if not re.match(r"[a-z_]", name) or name == "lang" else name[:60]
    return name if name not in taken else f"{name}_{len(taken)}"
