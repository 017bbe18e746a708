"""Mistral 7B v0.1 to v0.3 and Mistral Nemo. v0.1 attends to a sliding window: it can be used for texts as long as that."""

from __future__ import annotations

from nemo_steerlm.formats.families.base import WindowedFamily

FAMILY = WindowedFamily(
    model_type="mistral",
    architecture="MistralForCausalLM",
    gguf="llama",
    fixed={"hidden_act": ("silu", "swish")},
    defaults={"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    written={"sliding_window": None},
)
