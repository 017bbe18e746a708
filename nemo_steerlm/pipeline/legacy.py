"""The input hashes of version 0.1.0, so that what it finished stays finished.

It hashed its own version and every field with its default. Both are recomputed here from the fields that it knew. A manifest that sets a
field it did not know, and a stage whose format has been raised since, have no such hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_steerlm.pipeline.manifest import PipelineSpec
from nemo_steerlm.pipeline.sources import Spec
from nemo_steerlm.pipeline.stages.stage import Stage, digest

VERSION = "0.1.0"
FORMAT = 1
"""The format of every kind of stage then."""

_FIELDS: Mapping[str, tuple[str, ...]] = {
    "AttributesSpec": ("preset", "custom", "languages"),
    "AttributeSpec": ("name", "low", "high", "default", "description"),
    "DataSource": ("oasst", "helpsteer", "rated_text", "records", "on_error", "system"),
    "OasstSource": ("path", "limit", "split_ratio", "seed"),
    "HelpSteerSource": ("path", "preference"),
    "RatedTextSource": (
        "files", "text_column", "header", "ratings", "computed", "remove", "max_words", "limit", "hidden", "split_ratio", "seed",
    ),
    "RatedFile": ("path", "prompt"),
    "RatingColumn": ("column", "range"),
    "ComputedAttribute": ("measure",),
    "RecordsSource": ("train", "validation", "unlabelled"),
    "ModelSpec": ("base", "max_sequence_length", "chat_tokens", "layout"),
    "ChatTokensSpec": ("system_turn_start", "turn_start", "label_start"),
    "TrainSpec": (
        "max_steps", "max_epochs", "global_batch_size", "learning_rate", "min_learning_rate", "warmup_steps", "constant_steps",
        "weight_decay", "validate_every", "limit_validation_batches", "precision", "seed", "lora", "overrides",
    ),
    "LoraSpec": ("rank", "target_modules", "layer_selection"),
    "BootstrapSpec": ("rounds", "prompts", "samples_per_prompt", "require", "top_k", "temperature", "max_tokens"),
    "EvaluateSpec": ("attributes", "base", "samples_per_level", "judges", "prompts", "max_tokens", "temperature", "top_k", "seed"),
}  # fmt: skip
_NO_RESULT = {"TrainSpec": ("micro_batch_size", "parallel")}
"""Fields that it knew and did not hash."""


class _UnknownFieldError(Exception):
    """Version 0.1.0 did not have what the manifest sets, or the stage."""


def legacy_hash(spec: PipelineSpec, stage: Stage, identity: Mapping[str, Any]) -> str | None:
    """The stage's input hash by the rules of version 0.1.0, or None if it could not have had this stage.

    Args:
        spec: The pipeline's spec.
        stage: One of its stages.
        identity: What ``Stage.identity`` gives now, of which the digests are the same.
    """
    if stage.format != FORMAT:
        return None
    try:
        fields = _fields(spec, stage)
    except _UnknownFieldError:
        return None
    kept = {key: identity[key] for key in ("kind", "files", "inputs", "salt") if key in identity}
    return digest({"package": VERSION, "fields": fields, **kept})


def _fields(spec: PipelineSpec, stage: Stage) -> dict[str, Any]:
    def dumped(*names: str) -> dict[str, Any]:
        return {name: _dump(getattr(spec, name)) for name in names}

    if stage.training:
        training = _dump(stage.training.spec, with_none=True)
        return {**dumped("attributes", "model"), "system": spec.data.system, "train": training}
    if stage.kind == "prepare":
        return dumped("attributes", "data", "model")
    if stage.kind == "annotate":
        return {"turns": spec.annotate.turns, **dumped("model")}
    if stage.kind == "sample":
        return {"round": stage.round, **dumped("attributes", "bootstrap")}
    if stage.kind == "evaluate":
        return dumped("attributes", "evaluate", "model")
    raise _UnknownFieldError  # a stage that it did not have


def _dump(value: Any, *, with_none: bool = False) -> Any:
    if isinstance(value, Spec):
        return _dump_spec(value, with_none=with_none)
    if isinstance(value, tuple | list):
        return [_dump(item, with_none=with_none) for item in value]
    if isinstance(value, dict):
        return {key: _dump(item, with_none=with_none) for key, item in value.items()}
    return value


def _dump_spec(value: Spec, *, with_none: bool) -> dict[str, Any]:
    model = type(value)
    # A model that has been extended since is known by the name that it had.
    then = next((cls.__name__ for cls in model.__mro__ if cls.__name__ in _FIELDS), None)
    if then is None:
        raise _UnknownFieldError
    known = _FIELDS[then]
    for name, field in model.model_fields.items():
        ignored = name in known or name in _NO_RESULT.get(then, ())
        if not ignored and getattr(value, name) != field.default:
            raise _UnknownFieldError
    fields = {}
    for name in known:
        held = getattr(value, name)
        if held is not None or with_none:
            fields[str(model.model_fields[name].alias)] = _dump(held, with_none=with_none)
    return fields
