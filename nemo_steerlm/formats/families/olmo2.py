"""OLMo 2: norms after attention and MLP, and queries and keys normalized over all heads at once."""

from __future__ import annotations

from nemo_steerlm.formats.families.base import Family

FAMILY = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    fixed={"hidden_act": ("silu", "swish"), "attention_bias": (False, None)},
    defaults={"rms_norm_eps": 1e-5},
    # transformers' own defaults name tokens that other vocabularies lack.
    written={"attention_bias": False, "pad_token_id": None},
    qk_norm=True,
    wide_qk_norm=True,
    post_norm=True,
)
