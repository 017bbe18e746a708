"""Where a pipeline's rated data comes from. Part of the manifest: a field for each source in the registry (``data/sources``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field, create_model, model_validator
from pydantic.alias_generators import to_camel

from nemo_steerlm.core.attributes import AttributeSchema
from nemo_steerlm.core.errors import nearest
from nemo_steerlm.core.spec import Name, Reference, Spec, Text
from nemo_steerlm.data.sources import SOURCES
from nemo_steerlm.data.sources.source import Source

__all__ = ["DataSource", "Name", "Reference", "Source", "Spec", "Text"]


_SOURCES = "sources"
"""The field with the list of several sources."""


class _Kinds(Spec):
    """A field for each kind of source, of which one is given."""

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        """The fields that name a source."""
        return tuple(SOURCES)

    @property
    def given(self) -> list[str]:
        """The fields of those that are named."""
        return [kind for kind in self.kinds() if getattr(self, kind) is not None]


class _Weighted(_Kinds):
    """One of several sources: exactly one kind, and how much of it."""

    weight: Annotated[float, Field(gt=0, le=100)] = 1.0
    """How often each of its training conversations is used: 2 twice, 0.5 a random half. What validates is used once."""

    @model_validator(mode="after")
    def _exactly_one(self) -> _Weighted:
        if len(self.given) != 1:
            found = ", ".join(map(to_camel, self.given)) or "none"
            raise ValueError(f"name exactly one of {', '.join(map(to_camel, self.kinds()))}, found {found}")
        return self


class SourceEntry(NamedTuple):
    """One source of a pipeline."""

    name: str
    """What metrics and the report call it: its kind, numbered from the second of a kind on."""
    field: str
    """Its field in the manifest."""
    source: Source
    weight: float = 1.0


class _Data(_Kinds):
    """Rated data: exactly one kind, or several sources."""

    on_error: Literal["fail", "skip"] = "fail"
    """What a broken record does: end the pipeline with its file, line and field, or go to a ``.rejected.jsonl`` and be counted."""
    system: Annotated[str, Field(max_length=4096)] | None = None
    """System prompt of records that bring none; the tutorial's by default, an empty one if set to ``""``."""

    @model_validator(mode="after")
    def _one_or_several(self) -> _Data:
        given = [*map(to_camel, self.given), *(["sources"] if self.several else [])]
        if len(given) != 1:
            known = ", ".join([*map(to_camel, self.kinds()), "sources"])
            raise ValueError(f"name exactly one of {known}, found {', '.join(given) or 'none'}")
        return self

    @property
    def several(self) -> tuple[_Weighted, ...]:
        """The list of sources; empty where there is one that stands by itself."""
        found: tuple[_Weighted, ...] | None = getattr(self, _SOURCES)
        return found or ()

    @property
    def entries(self) -> tuple[SourceEntry, ...]:
        """Every source, in order."""
        if not self.several:
            [kind] = self.given
            return (SourceEntry(to_camel(kind), f"data.{to_camel(kind)}", getattr(self, kind)),)
        found: list[SourceEntry] = []
        for i, one in enumerate(self.several):
            [kind] = one.given
            count = 1 + sum(entry.name.partition("-")[0] == to_camel(kind) for entry in found)
            name = to_camel(kind) if count == 1 else f"{to_camel(kind)}-{count}"
            found.append(SourceEntry(name, f"data.sources[{i}].{to_camel(kind)}", getattr(one, kind), one.weight))
        return tuple(found)

    def references(self) -> tuple[str, ...]:
        """The files and folders whose content decides what is read."""
        return tuple(dict.fromkeys(reference for entry in self.entries for reference in entry.source.references()))

    def check(self, schema: AttributeSchema) -> None:
        """Raise ValueError where a source names attributes that ``schema`` lacks, or has ratings of none of its attributes."""
        for entry in self.entries:
            for place, names in entry.source.named().items():
                for name in names:
                    if name not in schema.names:
                        known = f"{nearest(name, schema.names)}known: {', '.join(schema.names)}"
                        raise ValueError(f"{entry.field}.{place}: unknown attribute {name!r}; {known}")
            rates = entry.source.rates()
            if rates is not None and not set(rates) & set(schema.names) and (rates or not self.several):
                raise ValueError(f"{entry.field}: {nothing_shared(rates)}")
        if all(entry.source.rates() == () for entry in self.entries):
            raise ValueError("data.sources: none of them has ratings, so the value model would have nothing to learn; add one that has")


def nothing_shared(rates: tuple[str, ...]) -> str:
    """What a source with ratings of ``rates`` says about attributes that are all others."""
    if not rates:
        return (
            "it names no ratings, so the value model would have nothing to learn; "
            "name at least one, or put it beside a source that has some under data.sources"
        )
    return (
        f"it has ratings of {', '.join(rates)} and of none of spec.attributes; choose a preset that has one of them, or list one in custom"
    )


if TYPE_CHECKING:

    class WeightedSource(_Weighted):
        """One of several sources: exactly one kind, and how much of it."""

    class DataSource(_Data):
        """Rated data: exactly one kind, or several sources."""

        sources: tuple[WeightedSource, ...] | None = None
else:
    _FIELDS: Mapping[str, Any] = {name: (source | None, None) for name, source in SOURCES.items()}
    WeightedSource = create_model("WeightedSource", __base__=_Weighted, __doc__=_Weighted.__doc__, __module__=__name__, **_FIELDS)
    _SEVERAL = Annotated[
        tuple[WeightedSource, ...],
        Field(
            min_length=1,
            max_length=16,
            description="Several sources, each with its weight. Labels have the attributes that their source rates; the others are absent.",
        ),
    ]
    DataSource = create_model(
        "DataSource", __base__=_Data, __doc__=_Data.__doc__, __module__=__name__, **_FIELDS, sources=(_SEVERAL | None, None)
    )
