"""SmolLM3: a Llama, every fourth of whose layers does not rotate queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_steerlm.core.errors import ConfigError, shown
from nemo_steerlm.formats.families.base import ModelConfig, WindowedFamily


class _SmolLM3(WindowedFamily, frozen=True, kw_only=True):
    def check(self, config: Mapping[str, Any], source: str) -> None:
        super().check(config, source)
        layers, rotated = config.get("num_hidden_layers"), config.get("no_rope_layers")
        if rotated is not None and (not isinstance(rotated, list) or len(rotated) != layers):
            raise ConfigError(f"{source}: no_rope_layers is {shown(rotated)}; it needs a number for each layer, 0 where nothing is rotated")
        every = config["no_rope_layer_interval"]
        if type(every) is not int or every < 1:
            raise ConfigError(f"{source}: no_rope_layer_interval is {shown(every)}; a whole number is needed")

    def window(self, config: Mapping[str, Any]) -> int | None:
        return super().window({**config, "use_sliding_window": True} if "sliding_attention" in config.get("layer_types", ()) else config)

    def own_fields(self, config: Mapping[str, Any]) -> dict[str, Any]:
        every = config["no_rope_layer_interval"]
        rotated = config.get("no_rope_layers") or [(layer + 1) % every for layer in range(config["num_hidden_layers"])]
        return {"unrotated": tuple(layer for layer, turned in enumerate(rotated) if not turned)}

    def own_keys(self, config: ModelConfig) -> dict[str, Any]:
        return {"no_rope_layers": [int(layer not in config.unrotated) for layer in range(config.num_hidden_layers)]}


FAMILY = _SmolLM3(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    gguf="smollm3",
    fixed={"hidden_act": ("silu", "swish"), "attention_bias": (False, None), "mlp_bias": (False, None)},
    defaults={
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "no_rope_layer_interval": 4,
    },
    # transformers' own default of the padding names a token that other vocabularies lack.
    written={"attention_bias": False, "mlp_bias": False, "use_sliding_window": False, "sliding_window": None, "pad_token_id": None},
    rope_theta=2000000.0,
    unrotated=True,
)
