"""What every part of a manifest is made of: the base model, and the kinds of text that fields hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from nemo_steerlm.core.references import PATTERN, check_scheme

Text = Annotated[str, Field(min_length=1, max_length=4096)]
Reference = Annotated[str, Field(min_length=1, max_length=1024, pattern=PATTERN), BeforeValidator(check_scheme)]
"""A file or folder: a path (relative ones start at the manifest), ``pypi:NAME==VERSION/path/in/archive``, a hub name, or an address that
begins with one of ``references.SCHEMES``."""
Name = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Spec(BaseModel):
    """Base of every part of a manifest: camelCase keys, unknown keys refused, immutable."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=False, extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


ModelT = TypeVar("ModelT", bound=BaseModel)


def from_plain(model: type[ModelT], data: Any) -> ModelT:
    """``data``, what JSON can say, as a ``model``: a boolean is no number, nor is a text; 3.0 is 3, as for a cluster's API server.

    Raises pydantic's ValidationError.
    """
    return model.model_validate_json(json.dumps(_with_whole_numbers(data), default=str), strict=True)


def _with_whole_numbers(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_whole_numbers(item) for item in value]
    return whole(value)


def whole(value: Any) -> Any:
    """3.0 as 3, and anything else as it is: to JSON Schema, and so to an API server, both are the same whole number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
