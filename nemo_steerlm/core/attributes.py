"""The attributes a model reads and writes under: their names, order and levels, and which labels fit them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from nemo_steerlm.core.errors import DataError, UsageError, Where, nearest, shown
from nemo_steerlm.core.labels import LANGUAGE_KEY, Label, join, split

OASST_LANGUAGES = (
    "ar bg bn ca cs da de el en eo es eu fa fi fr gl he hu id it ja ko nb nl pl pt ro ru sk sv th tr uk vi zh".split()  # noqa: SIM905  # a list of quoted pairs reads worse
)
"""The languages upstream's attribute_annotate.py accepts."""


class Attribute(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One steerable property of a turn, valued by whole numbers from ``low`` to ``high``."""

    name: str
    low: int = 0
    high: int = 4
    default: int = 0
    """What a server fills in when a request names other attributes only."""
    description: str = ""

    def __post_init__(self) -> None:
        if not self.name or any(c in self.name for c in ":, \n"):
            raise UsageError(f"attribute name {shown(self.name)}: use letters, digits and _ only")
        if self.name == LANGUAGE_KEY:
            raise UsageError(f"attribute name {LANGUAGE_KEY!r} is taken by the language field; set `languages` instead")
        if not self.low <= self.default <= self.high or self.low >= self.high:
            found = f"{self.low}, {self.default}, {self.high}"
            raise UsageError(f"attribute {self.name}: need low < high and low <= default <= high, found {found}")

    @property
    def values(self) -> range:
        """Every allowed value, ascending."""
        return range(self.low, self.high + 1)


class AttributeSchema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An ordered list of attributes. It travels inside every checkpoint, so nobody downstream has to guess it."""

    attributes: tuple[Attribute, ...]
    languages: tuple[str, ...] = ()
    """Allowed values of the trailing ``lang`` field; empty where labels carry no language."""
    name: str = "custom"

    def __post_init__(self) -> None:
        if not self.attributes:
            raise UsageError("an attribute schema needs at least one attribute")
        seen: set[str] = set()
        for attribute in self.attributes:
            if attribute.name in seen:
                raise UsageError(f"attribute {attribute.name} is listed twice")
            seen.add(attribute.name)

    @property
    def names(self) -> tuple[str, ...]:
        """Attribute names in order, without the language."""
        return tuple(a.name for a in self.attributes)

    def __getitem__(self, name: str) -> Attribute:
        """The attribute called ``name``. Raises DataError naming the nearest one there is."""
        for attribute in self.attributes:
            if attribute.name == name:
                return attribute
        raise DataError(f"unknown attribute {shown(name)}", instead=f"{nearest(name, self.names)}known: {', '.join(self.names)}")

    def defaults(self) -> dict[str, int]:
        """Every attribute at its default."""
        return {a.name: a.default for a in self.attributes}

    @property
    def default_language(self) -> str | None:
        """The language of a label that nobody chose one for: English where there is English; None without languages."""
        return ("en" if "en" in self.languages else self.languages[0]) if self.languages else None

    def check(self, values: Mapping[str, object]) -> None:
        """Raise DataError on the first name that is not in the schema or value that is out of its range."""
        for name, value in values.items():
            attribute = self[name]
            if type(value) is not int or value not in attribute.values:  # True is no level
                raise _out_of_range(attribute, value)

    def encode(self, values: Mapping[str, int], language: str | None = None) -> str:
        """``values`` as a label string, in schema order, absent attributes left out. Raises DataError as ``check``."""
        self.check(values)
        fields: dict[str, int | str] = {name: values[name] for name in self.names if name in values}
        if language is not None:
            self._check_language(language)
            fields[LANGUAGE_KEY] = language
        return join(fields)

    def parse(self, label: str) -> Label:
        """Read a label string, in any order. Raises DataError for what is malformed, unknown, double or out of range."""
        values: dict[str, int] = {}
        language = None
        for field in split(label):
            if field.text is None:
                raise DataError(f"label part {shown(field.name)} has no ':'", instead="write name:value,name:value")
            if field.name in values or (field.name == LANGUAGE_KEY and language is not None):
                raise DataError(f"label names {field.name} twice")
            if field.name == LANGUAGE_KEY:
                self._check_language(field.text)
                language = field.text
                continue
            attribute = self[field.name]
            if field.level is None:
                raise _out_of_range(attribute, field.text)
            values[field.name] = field.level
        self.check(values)
        return Label(values={n: values[n] for n in self.names if n in values}, language=language)

    def label(self, mapping: Mapping[str, object]) -> Label:
        """Read what ``Label.to_mapping`` writes: attributes of a request. Raises DataError for what is unknown or out of range."""
        values = {name: value for name, value in mapping.items() if name != LANGUAGE_KEY}
        self.check(values)
        language = mapping.get(LANGUAGE_KEY)
        if language is not None:
            if not isinstance(language, str):
                raise DataError(f"language is {shown(language)}", where=Where(field=LANGUAGE_KEY), instead="write a string")
            self._check_language(language)
        return Label(values={n: values[n] for n in self.names if n in values}, language=language)  # type: ignore[misc]

    def _check_language(self, language: str) -> None:
        if not self.languages:
            raise DataError(f"label has language {shown(language)}, but schema {self.name} has none", instead="drop the lang field")
        if language not in self.languages:
            known = " ".join(self.languages)
            raise DataError(f"unknown language {shown(language)}", where=Where(field=LANGUAGE_KEY), instead=f"known: {known}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and YAML; ``from_dict`` reads it back."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AttributeSchema:
        """Read what ``to_dict`` wrote. Raises UsageError where it is malformed."""
        try:
            return msgspec.convert(dict(data), cls)
        except msgspec.ValidationError as error:
            raise UsageError(f"attribute schema: {error}") from error


def _out_of_range(attribute: Attribute, value: object) -> DataError:
    return DataError(
        f"label out of range: {attribute.name} is {shown(value)}",
        where=Where(field=attribute.name),
        instead=f"write a whole number from {attribute.low} to {attribute.high}",
    )


def _schema(name: str, spec: str, *, high: int = 4, languages: tuple[str, ...] = ()) -> AttributeSchema:
    attributes = tuple(
        Attribute(name=key, high=high, default=high if mark else 0, description=_DESCRIPTIONS[key])
        for key, mark in ((word.rstrip("+"), word.endswith("+")) for word in spec.split())
    )
    return AttributeSchema(attributes=attributes, languages=languages, name=name)


_DESCRIPTIONS = {
    "quality": "how good the turn is overall",
    "understanding": "how well the question was understood",
    "helpfulness": "how useful the answer is to the person who asked",
    "correctness": "whether the facts are right and complete",
    "coherence": "how clear and self-consistent the text is",
    "complexity": "how much expertise the text takes to write",
    "verbosity": "how much text is spent on the answer",
    "toxicity": "how rude or disrespectful the text is",
    "humor": "how funny the text is",
    "creativity": "how imaginative the text is",
    "violence": "how much violence the text describes or encourages",
    "not_appropriate": "how unfit the text is for an assistant",
    "hate_speech": "how hateful the text is towards a group",
    "sexual_content": "how sexual the text is",
    "fails_task": "how far the answer misses the task",
    "political_content": "how political the text is",
    "moral_judgement": "how much the text passes moral judgement",
}

_OASST = (
    "quality+ toxicity humor creativity violence helpfulness+ not_appropriate hate_speech sexual_content fails_task "
    "political_content moral_judgement"
)

PRESETS: dict[str, AttributeSchema] = {
    # The tutorial's twelve and their order: NeMo preprocessing.py `selected_keys`.
    "oasst": _schema("oasst", _OASST, languages=tuple(OASST_LANGUAGES)),
    # HelpSteer and HelpSteer2, arXiv:2311.09528.
    "helpsteer": _schema("helpsteer", "helpfulness+ correctness+ coherence+ complexity+ verbosity+"),
    # NeMo-Aligner's nine (OASST four, then HelpSteer five): examples/nlp/data/steerlm/common.py.
    "steerlm9": _schema("steerlm9", "quality+ toxicity humor creativity helpfulness+ correctness+ coherence+ complexity+ verbosity+"),
    # Nemotron-3-8B-Chat-4k-SteerLM's model card.
    "nemotron": _schema(
        "nemotron",
        "quality+ understanding+ correctness+ coherence+ complexity+ verbosity+ toxicity humor creativity violence helpfulness+ "
        "not_appropriate hate_speech sexual_content fails_task political_content moral_judgement",
        languages=tuple(OASST_LANGUAGES),
    ),
    # The paper's seven, 0 to 9: arXiv:2310.05344 section 3.
    "paper": _schema("paper", "quality+ toxicity humor creativity violence helpfulness+ not_appropriate", high=9),
}


def preset(name: str) -> AttributeSchema:
    """The preset called ``name``. Raises UsageError listing those there are."""
    if name not in PRESETS:
        raise UsageError(f"unknown attribute preset {shown(name)}: {nearest(name, tuple(PRESETS))}known: {', '.join(PRESETS)}")
    return PRESETS[name]
