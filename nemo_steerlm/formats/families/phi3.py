"""Phi-3 and Phi-4: fused projections, and a sliding window in Phi-3 mini, whose texts can be as long as that.

Models with ``longrope`` (the 128k ones, Phi-4 mini) or with heads that are rotated in part are refused.
"""

from __future__ import annotations

from nemo_steerlm.formats.families.base import WindowedFamily

FAMILY = WindowedFamily(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    fixed={"hidden_act": ("silu", "swish"), "partial_rotary_factor": (1.0,)},
    defaults={"max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    # transformers' own defaults name a token that other vocabularies lack.
    written={"pad_token_id": None, "sliding_window": None},
    fused=True,
)
