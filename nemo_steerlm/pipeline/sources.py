"""Where a pipeline's rated data comes from. Part of the manifest: a field for each source in the registry (``data/sources``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, create_model, model_validator
from pydantic.alias_generators import to_camel

from nemo_steerlm.core.attributes import AttributeSchema
from nemo_steerlm.core.errors import nearest
from nemo_steerlm.core.spec import Name, Reference, Spec, Text
from nemo_steerlm.data.sources import SOURCES
from nemo_steerlm.data.sources.source import Source

__all__ = ["DataSource", "Name", "Reference", "Source", "Spec", "Text"]


class _Data(Spec):
    """Rated data: exactly one kind."""

    on_error: Literal["fail", "skip"] = "fail"
    """What a broken record does: end the pipeline with its file, line and field, or go to a ``.rejected.jsonl`` and be counted."""
    system: Annotated[str, Field(max_length=4096)] | None = None
    """System prompt of records that bring none; the tutorial's by default, an empty one if set to ``""``."""

    @model_validator(mode="after")
    def _exactly_one(self) -> _Data:
        given = [to_camel(kind) for kind in self.kinds() if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"name exactly one of {', '.join(map(to_camel, self.kinds()))}, found {', '.join(given) or 'none'}")
        return self

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        """The fields that name a source."""
        return tuple(SOURCES)

    @property
    def kind(self) -> str:
        """The field of the one source that is named."""
        return next(kind for kind in self.kinds() if getattr(self, kind) is not None)

    @property
    def source(self) -> Source:
        """The one source that is named."""
        found: Source = getattr(self, self.kind)
        return found

    def check(self, schema: AttributeSchema) -> None:
        """Raise ValueError where the source names attributes that ``schema`` lacks, or has ratings of none of its attributes."""
        field = f"data.{to_camel(self.kind)}"
        for place, names in self.source.named().items():
            for name in names:
                if name not in schema.names:
                    known = f"{nearest(name, schema.names)}known: {', '.join(schema.names)}"
                    raise ValueError(f"{field}.{place}: unknown attribute {name!r}; {known}")
        rates = self.source.rates()
        if rates is not None and not set(rates) & set(schema.names):
            raise ValueError(f"{field}: {nothing_shared(rates)}")


def nothing_shared(rates: tuple[str, ...]) -> str:
    """What a source with ratings of ``rates`` says about attributes that are all others."""
    if not rates:
        return "it names no ratings, so the value model would have nothing to learn; name at least one"
    return (
        f"it has ratings of {', '.join(rates)} and of none of spec.attributes; choose a preset that has one of them, or list one in custom"
    )


if TYPE_CHECKING:

    class DataSource(_Data):
        """Rated data: exactly one kind."""
else:
    _FIELDS: Mapping[str, Any] = {name: (source | None, None) for name, source in SOURCES.items()}
    DataSource = create_model("DataSource", __base__=_Data, __doc__=_Data.__doc__, __module__=__name__, **_FIELDS)
