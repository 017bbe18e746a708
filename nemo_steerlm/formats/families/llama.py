"""Llama 1 to 3.3, and what shares their architecture (SmolLM2, TinyLlama)."""

from __future__ import annotations

from nemo_steerlm.formats.families.base import Family

FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    gguf="llama",
    fixed={"hidden_act": ("silu", "swish"), "attention_bias": (False, None), "mlp_bias": (False, None)},
    written={"attention_bias": False, "mlp_bias": False},
)
