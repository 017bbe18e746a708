"""What a model family is: which ``config.json`` it reads, and which tensors its checkpoints hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from nemo_steerlm.core.errors import ConfigError, shown

Shape = tuple[int, ...]


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The architecture of a decoder-only model. Names are Hugging Face's."""

    family: str = "llama"
    """Key of the family in the registry: its ``model_type``."""
    vocab_size: int
    """Rows of the embedding, padding included where a checkpoint has some."""
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    """Where a model attends to a sliding window only, no more than that window: within it, all attention is full attention."""
    rms_norm_eps: float
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    """Linear or Llama 3's, with a ``rope_type``; None for plain rotary embeddings."""
    tie_word_embeddings: bool = False
    dtype: str = "float32"
    embedding_multiplier: float = 1.0
    """Of the embedding's output."""
    attention_multiplier: float | None = None
    """Of the scores of queries and keys; None for one over the root of the head's size."""
    residual_multiplier: float = 1.0
    """Of what each attention and each MLP adds."""
    logits_divisor: float = 1.0
    unrotated: tuple[int, ...] = ()
    """Layers, counted from 0, whose queries and keys are not rotated."""


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """One model family. All of them are decoders with RMSNorm, rotary embeddings, grouped queries and SwiGLU.

    A subclass overrides what its family has beyond that.
    """

    model_type: str
    """``model_type`` in ``config.json``."""
    architecture: str
    """The class of transformers, which ``architectures`` names."""
    fixed: Mapping[str, tuple[Any, ...]] = {}
    """Keys of ``config.json`` that must be absent, or have one of these values."""
    defaults: Mapping[str, Any] = {}
    """What transformers assumes where a key is absent, as far as it differs from Llama's."""
    rope_theta: float = 10000.0
    """What transformers assumes where neither of the two keys that may say it does."""
    written: Mapping[str, Any] = {}
    """Keys of its own in an exported ``config.json``."""
    qkv_bias: bool = False
    """Whether the projections to queries, keys and values have biases."""
    qk_norm: bool = False
    """Whether queries and keys are normalized before they are rotated."""
    wide_qk_norm: bool = False
    """Whether that is done over all heads at once, not head by head."""
    post_norm: bool = False
    """Whether norms come after attention and MLP, and none before them."""
    unrotated: bool = False
    """Whether there are layers that do not rotate queries and keys."""
    gguf: str | None = None
    """llama.cpp's name of the architecture; None where its layers cannot be written under one."""
    fused: bool = False
    """Whether a checkpoint holds queries, keys and values as one matrix, and gate and up as another."""

    def check(self, config: Mapping[str, Any], source: str) -> None:
        """Raise ConfigError where ``config`` asks for what this family's layers do not compute here."""
        for key, values in self.fixed.items():
            if key in config and config[key] not in values:
                raise ConfigError(f"{source}: {key} is {shown(config[key])}; a {self.model_type} model can be used with {values[0]!r} only")

    def window(self, config: Mapping[str, Any]) -> int | None:
        """How many tokens each position attends to at most, itself included; None for all."""
        del config
        return None

    def own_fields(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What ``config`` says of those fields of ModelConfig that few families have: multipliers, ``unrotated``."""
        del config
        return {}

    def own_keys(self, config: ModelConfig) -> dict[str, Any]:
        """What an exported ``config.json`` has beside ``written`` and what all families have."""
        del config
        return {}

    def tensors(self, config: ModelConfig) -> dict[str, Shape]:
        """Every tensor of a checkpoint by name, with its shape; ``lm_head.weight`` only where it is not tied."""
        found = {"model.embed_tokens.weight": (config.vocab_size, config.hidden_size), "model.norm.weight": (config.hidden_size,)}
        if not config.tie_word_embeddings:
            found["lm_head.weight"] = (config.vocab_size, config.hidden_size)
        for layer in range(config.num_hidden_layers):
            found |= {f"model.layers.{layer}.{name}": shape for name, shape in self._layer(config)}
        return found

    def _layer(self, config: ModelConfig) -> Iterator[tuple[str, Shape]]:
        hidden, ffn, size = config.hidden_size, config.intermediate_size, config.head_dim
        queries, keys = config.num_attention_heads * size, config.num_key_value_heads * size
        if not self.post_norm:
            yield "input_layernorm.weight", (hidden,)
        rows = {"qkv": queries + 2 * keys} if self.fused else {"q": queries, "k": keys, "v": keys}
        for name, count in rows.items():
            yield f"self_attn.{name}_proj.weight", (count, hidden)
            if self.qkv_bias:
                yield f"self_attn.{name}_proj.bias", (count,)
        if self.qk_norm:
            yield "self_attn.q_norm.weight", (queries if self.wide_qk_norm else size,)
            yield "self_attn.k_norm.weight", (keys if self.wide_qk_norm else size,)
        yield "self_attn.o_proj.weight", (hidden, queries)
        yield "post_attention_layernorm.weight", (hidden,)
        for name, count in {"gate_up": 2 * ffn}.items() if self.fused else {"gate": ffn, "up": ffn}.items():
            yield f"mlp.{name}_proj.weight", (count, hidden)
        yield "mlp.down_proj.weight", (hidden, ffn)
        if self.post_norm:
            yield "post_feedforward_layernorm.weight", (hidden,)


class WindowedFamily(Family, frozen=True, kw_only=True):
    """A family some of whose models attend to a sliding window, in all layers or in some.

    No layer here masks what is outside the window. Texts that fit into it are computed exactly, so that is how long they may be.
    """

    def window(self, config: Mapping[str, Any]) -> int | None:
        """See Family."""
        if not config.get("use_sliding_window", True):
            return None
        window: int | None = config.get("sliding_window")
        return window
