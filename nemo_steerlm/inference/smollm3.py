"""SmolLM3 for a transformers that has none, as 4.51: a Llama, some of whose layers do not rotate queries and keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


class SmolLM3Config(LlamaConfig):  # type: ignore[misc]
    """What a ``config.json`` says."""

    model_type = "smollm3"

    def __init__(self, no_rope_layers: Sequence[int] | None = None, no_rope_layer_interval: int = 4, **named: Any) -> None:
        """``no_rope_layers`` has a 0 for each layer without rotation; None for one in ``no_rope_layer_interval``."""
        super().__init__(**{"tie_word_embeddings": True, "rope_theta": 2000000.0, **named})
        every = [int((layer + 1) % no_rope_layer_interval != 0) for layer in range(self.num_hidden_layers)]
        self.no_rope_layers = every if no_rope_layers is None else list(no_rope_layers)


class SmolLM3ForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
    """Named as transformers names its own, which checkpoints ask for."""

    config_class = SmolLM3Config

    def __init__(self, config: SmolLM3Config) -> None:
        super().__init__(config)
        for layer, rotated in zip(self.model.layers, config.no_rope_layers, strict=True):
            if not rotated:
                layer.self_attn.register_forward_pre_hook(_unrotated, with_kwargs=True)


def _unrotated(_module: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    cos, sin = named["position_embeddings"]
    return inputs, {**named, "position_embeddings": (torch.ones_like(cos), torch.zeros_like(sin))}


def register() -> None:
    """Let transformers' Auto classes know it, where they do not."""
    if SmolLM3Config.model_type not in CONFIG_MAPPING:
        AutoConfig.register(SmolLM3Config.model_type, SmolLM3Config)
        AutoModelForCausalLM.register(SmolLM3Config, SmolLM3ForCausalLM)
