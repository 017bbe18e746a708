"""Qwen2 and Qwen2.5: a Llama whose queries, keys and values have biases."""

from __future__ import annotations

from nemo_steerlm.formats.families.base import WindowedFamily

FAMILY = WindowedFamily(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    gguf="qwen2",
    fixed={"hidden_act": ("silu", "swish")},
    defaults={"max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096, "use_sliding_window": False},
    written={"use_sliding_window": False, "sliding_window": None},
    qkv_bias=True,
)
