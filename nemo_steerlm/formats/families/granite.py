"""Granite 3's dense models: a Llama with four multipliers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_steerlm.formats.families.base import Family, ModelConfig

_KEYS = {
    "embedding_multiplier": "embedding_multiplier",
    "attention_multiplier": "attention_multiplier",
    "residual_multiplier": "residual_multiplier",
    "logits_divisor": "logits_scaling",
}
"""Granite's names of ModelConfig's fields; each is 1 where it is absent."""


class _Granite(Family, frozen=True, kw_only=True):
    def own_fields(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {field: float(config.get(key, 1.0)) for field, key in _KEYS.items()}

    def own_keys(self, config: ModelConfig) -> dict[str, Any]:
        return {key: getattr(config, field) for field, key in _KEYS.items()}


FAMILY = _Granite(
    model_type="granite",
    architecture="GraniteForCausalLM",
    fixed={"hidden_act": ("silu", "swish"), "attention_bias": (False, None), "mlp_bias": (False, None)},
    written={"attention_bias": False, "mlp_bias": False},
)
