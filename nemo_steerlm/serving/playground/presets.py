"""Settings that have a name: combinations of attributes, computed from the model's schema, and ways to sample."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from nemo_steerlm.core.attributes import AttributeSchema

Attributes = dict[str, int | str]

CUSTOM = "custom"
"""What a preset's field shows once somebody has moved a slider."""

_MOODS = {"playful": (("humor", "creativity"), ()), "brief": ((), ("verbosity", "complexity"))}
"""Attributes at their high end, and at their low end. Offered where the schema has one of them."""


def attribute_presets(schema: AttributeSchema, defaults: Mapping[str, int | str]) -> dict[str, Attributes]:
    """Combinations by name, ``defaults`` first; those that are the defaults again are left out.

    The moods, then every default mirrored in its range, then each attribute's two ends with the others as they are by default.
    """
    base = {**schema.defaults(), **defaults}
    ends = {a.name: (a.low, a.high) for a in schema.attributes}
    wanted: dict[str, Attributes] = {"defaults": base}
    for mood, (raised, lowered) in _MOODS.items():
        wanted[mood] = base | {n: ends[n][1] for n in raised if n in ends} | {n: ends[n][0] for n in lowered if n in ends}
    wanted["opposite"] = base | {name: low + high - int(base[name]) for name, (low, high) in ends.items()}
    for name, (low, high) in ends.items():
        wanted[f"most {name}"] = base | {name: high}
        wanted[f"least {name}"] = base | {name: low}
    return {name: attributes for name, attributes in wanted.items() if name == "defaults" or attributes != base}


def contrast(schema: AttributeSchema) -> tuple[str, str]:
    """The two presets to compare first: the first attribute's ends. Either may be missing where it equals the defaults."""
    first = schema.attributes[0].name
    return f"most {first}", f"least {first}"


class SamplingPreset(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are drawn, as the chat endpoint names it."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


SAMPLING = {
    "balanced": SamplingPreset(temperature=0.7, top_p=0.9),
    "steady (always the same)": SamplingPreset(temperature=0.0),
    "varied": SamplingPreset(temperature=1.0),
    "few repeats": SamplingPreset(temperature=0.7, top_p=0.9, repetition_penalty=1.2),
}
"""By name, the one to start with first."""
