"""Qwen3's dense models: queries and keys are normalized head by head, and heads have a size of their own."""

from __future__ import annotations

from nemo_steerlm.formats.families.base import WindowedFamily

FAMILY = WindowedFamily(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    gguf="qwen3",
    fixed={"hidden_act": ("silu", "swish"), "attention_bias": (False, None)},
    defaults={
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "sliding_window": 4096,
        "use_sliding_window": False,
    },
    written={"attention_bias": False, "use_sliding_window": False, "sliding_window": None},
    qk_norm=True,
)
