"""How label strings are written: ``quality:4,toxicity:0,lang:en``. What may be in one is the schema's to say (``core/attributes.py``).

Upstream: NeMo v2.4.1 sft/preprocessing.py (``encode_labels``). Every string of this form is put together and taken apart here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from nemo_steerlm.core.errors import UsageError, shown

LANGUAGE_KEY = "lang"
"""The field that names a language instead of a level."""

_LEVEL = re.compile(r"-?[0-9]{1,9}")


class Field(NamedTuple):
    """One part of a label string."""

    name: str
    text: str | None
    """The value as written; None where the part has no ``:``."""
    start: int
    """Where the value begins in the label string."""

    @property
    def level(self) -> int | None:
        """The value as a whole number; None where it is none (or names a language)."""
        return int(self.text) if self.text and self.name != LANGUAGE_KEY and _LEVEL.fullmatch(self.text) else None


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """What a label says: levels by attribute, and the language if it names one."""

    values: dict[str, int] = {}
    language: str | None = None

    def over(self, base: Label) -> Label:
        """``base`` with what this label says in its place."""
        return Label(values={**base.values, **self.values}, language=base.language if self.language is None else self.language)

    def to_mapping(self) -> dict[str, int | str]:
        """As requests and answers of the API have it: ``{"quality": 4, "lang": "en"}``. ``AttributeSchema.label`` reads it back."""
        return {**self.values, **({} if self.language is None else {LANGUAGE_KEY: self.language})}

    @classmethod
    def from_options(cls, options: Iterable[str]) -> Label:
        """What command lines say, ``["quality=4", "lang=en"]``; a later option wins. Raises UsageError for anything else."""
        values: dict[str, int] = {}
        language = None
        for option in options:
            name, equals, text = option.rpartition("=")  # names may have one, values have none
            if not name or not equals:
                raise UsageError(f"attribute {shown(option)}: write name=value, as quality=4")
            if name == LANGUAGE_KEY:
                language = text
            elif _LEVEL.fullmatch(text):
                values[name] = int(text)
            else:
                raise UsageError(f"attribute {name} is {shown(text)}: write a whole number, as {name}=4")
        return cls(values=values, language=language)


def split(label: str) -> list[Field]:
    """The parts of ``label`` in order, whatever they are: nothing is checked. Empty for an empty label."""
    fields = []
    start = 0
    for part in label.split(",") if label else ():
        name, colon, text = part.partition(":")
        fields.append(Field(name, text if colon else None, start + len(name) + len(colon)))
        start += len(part) + 1
    return fields


def join(fields: Mapping[str, int | str] | Iterable[tuple[str, int | str]]) -> str:
    """The label string with these values by name, in this order."""
    pairs = fields.items() if isinstance(fields, Mapping) else fields
    return ",".join(f"{name}:{value}" for name, value in pairs)
