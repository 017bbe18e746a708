"""What is wrong with a manifest, one line a mistake: the file and line, the field, what was found and what to write instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pydantic

from nemo_steerlm.core.errors import nearest, shown
from nemo_steerlm.core.yaml_files import FieldPath


def mistakes(
    error: pydantic.ValidationError,
    root: type[pydantic.BaseModel],
    source: str,
    lines: Mapping[FieldPath, int] | None = None,
    texts: Mapping[FieldPath, str] | None = None,
) -> str:
    """Every mistake that ``error`` holds.

    Args:
        error: What validation raised.
        root: The model of the whole document.
        source: The name that each line begins with.
        lines: The line of each value in ``source``, where there are lines.
        texts: What was written there for each scalar.
    """
    mistakes = error.errors(include_url=False)
    return "\n".join(f"{source}{_line(e['loc'], lines or {})}: {_sentence(e, root, texts or {})}" for e in mistakes)


def _line(location: FieldPath, lines: Mapping[FieldPath, int]) -> str:
    """``:LINE`` of the value there, or of the nearest around it."""
    return next((f":{lines[location[:end]]}" for end in range(len(location), 0, -1) if location[:end] in lines), "")


def _sentence(error: Any, root: type[pydantic.BaseModel], texts: Mapping[FieldPath, str]) -> str:
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).lstrip(".")
    if error["type"] == "extra_forbidden":
        key = str(error["loc"][-1])
        known = _keys_beside(root, error["loc"])
        return f"{field}: unknown key; {nearest(key, known)}known: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{field}: missing; {_described(root, error['loc'])}"
    message = error["msg"].removeprefix("Value error, ")
    value = "" if error["type"] == "value_error" else f", found {_wrong_value(error, texts)}"
    return f"{field or 'manifest'}: {message[0].lower()}{message[1:]}{value}"


def _wrong_value(error: Any, texts: Mapping[FieldPath, str]) -> str:
    """The value that is wrong, and what to write where its kind is what is wrong."""
    value, written = error["input"], texts.get(error["loc"])
    wants_text = error["type"] == "string_type" or f"'{value}'" in error["msg"]
    if wants_text and isinstance(value, int | float):
        return f'{shown(value)}; put it in quotes: "{written or value}"'
    if isinstance(value, bool) and written is not None and written.lower() not in ("true", "false"):
        return f"{written}, which is the boolean {str(value).lower()}"
    return shown(value)


def _model_at(root: type[pydantic.BaseModel], location: FieldPath) -> type[pydantic.BaseModel] | None:
    """The model whose fields stand at ``location``; list indexes and dict keys are passed over."""
    model: type[pydantic.BaseModel] | None = root
    for part in location:
        field = next((f for n, f in (model.model_fields if model else {}).items() if part in (n, f.alias)), None)
        if field is not None:
            model = next(iter(_models_in(field.annotation)), None)
    return model


def _models_in(annotation: Any) -> list[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    return [m for argument in getattr(annotation, "__args__", ()) for m in _models_in(argument)]


def _keys_beside(root: type[pydantic.BaseModel], location: FieldPath) -> tuple[str, ...]:
    model = _model_at(root, location[:-1])
    return tuple(f.alias or n for n, f in model.model_fields.items()) if model else ()


def _described(root: type[pydantic.BaseModel], location: FieldPath) -> str:
    model = _model_at(root, location[:-1])
    field = next((f for n, f in (model.model_fields if model else {}).items() if location[-1] in (n, f.alias)), None)
    return f"it says: {field.description}" if field and field.description else "add it"
