"""A Llama model's architecture: read from ``config.json``, GGUF or NeMo's config, written as NeMo's config or ``config.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from nemo_steerlm.core.errors import ConfigError, UsageError, shown
from nemo_steerlm.formats.gguf_files import open_gguf

DTYPES = ("float32", "bfloat16", "float16")


class LlamaConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What both sides have to agree on. Names are Hugging Face's."""

    vocab_size: int
    """Rows of the embedding, padding included where a checkpoint has some."""
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    """Linear or Llama 3's, with a ``rope_type``; None for plain rotary embeddings."""
    tie_word_embeddings: bool = False
    dtype: str = "float32"

    @classmethod
    def load(cls, source: str | Path) -> LlamaConfig:
        """From a Hugging Face folder or a ``.gguf``. Raises UsageError where there is none, ConfigError where it is no Llama."""
        source = Path(source)
        if source.is_file():
            return cls.from_dict(open_gguf(source).config(), str(source))
        path = source / "config.json"
        try:
            return cls.from_dict(json.loads(path.read_bytes()), str(path))
        except FileNotFoundError as error:
            raise UsageError(f"{source}: no config.json; give a Hugging Face model folder or a .gguf file") from error
        except json.JSONDecodeError as error:
            raise UsageError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, config: dict[str, Any], source: str = "config.json") -> LlamaConfig:
        """From the object in a ``config.json`` of transformers 4 or 5."""
        _refuse_others(config, source)
        heads = config["num_attention_heads"]
        # transformers 5 moved theta and scaling into `rope_parameters`.
        rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta"), **(config.get("rope_scaling") or {})}
        rope = {("rope_type" if key == "type" else key): value for key, value in rope.items()}
        theta = float(rope.pop("rope_theta", None) or 10000.0)
        return cls(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_hidden_layers=config["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            max_position_embeddings=config.get("max_position_embeddings", 2048),
            rms_norm_eps=config.get("rms_norm_eps", 1e-6),
            rope_theta=theta,
            rope_scaling=None if rope.get("rope_type", "default") == "default" else rope,
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            dtype=config.get("torch_dtype") or config.get("dtype") or "float32",
        )

    @classmethod
    def from_nemo(cls, cfg: Any, vocab_size: int) -> LlamaConfig:
        """From a NeMo model config. Raises ConfigError where the model is not what Hugging Face's Llama computes."""
        wanted = {"normalization": "rmsnorm", "position_embedding_type": "rope", "rotary_percentage": 1.0, "bias": False}
        for key, value in wanted.items():
            if cfg.get(key) != value:
                raise ConfigError(f"model.{key}={cfg.get(key)}: only a Llama ({key}={value}) can be written as a Hugging Face checkpoint")
        if cfg.get("activation") not in ("fast-swiglu", "swiglu") or cfg.get("qkv_bias"):
            raise ConfigError("only a Llama (SwiGLU, no qkv bias) can be written as a Hugging Face checkpoint")
        heads = cfg.num_attention_heads
        return cls(
            vocab_size=vocab_size,
            hidden_size=cfg.hidden_size,
            intermediate_size=cfg.ffn_hidden_size,
            num_hidden_layers=cfg.num_layers,
            num_attention_heads=heads,
            num_key_value_heads=cfg.get("num_query_groups") or heads,
            head_dim=cfg.get("kv_channels") or cfg.hidden_size // heads,
            max_position_embeddings=cfg.max_position_embeddings,
            rms_norm_eps=cfg.layernorm_epsilon,
            rope_theta=float(cfg.get("rotary_base") or 10000),
            rope_scaling=_rope_scaling_of(cfg),
            tie_word_embeddings=bool(cfg.share_embeddings_and_output_weights),
            dtype={"bf16": "bfloat16", "bf16-mixed": "bfloat16", "16": "float16", "16-mixed": "float16"}.get(
                str(cfg.get("precision")), "float32"
            ),
        )

    def to_nemo(self) -> dict[str, Any]:
        """The architecture part of NeMo's ``model`` config. The vocabulary is not in it: NeMo takes its size from the tokenizer."""
        config: dict[str, Any] = {
            "mcore_gpt": True,
            "hidden_size": self.hidden_size,
            "ffn_hidden_size": self.intermediate_size,
            "num_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_query_groups": self.num_key_value_heads,
            "kv_channels": self.head_dim,
            "encoder_seq_length": self.max_position_embeddings,
            "max_position_embeddings": self.max_position_embeddings,
            "layernorm_epsilon": self.rms_norm_eps,
            "normalization": "rmsnorm",
            "activation": "fast-swiglu",
            "bias": False,
            "position_embedding_type": "rope",
            "rotary_percentage": 1.0,
            "rotary_base": int(self.rope_theta) if self.rope_theta == int(self.rope_theta) else self.rope_theta,
            "share_embeddings_and_output_weights": self.tie_word_embeddings,
            "apply_query_key_layer_scaling": False,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            "ffn_dropout": 0.0,
        }
        scaling = self.rope_scaling
        if scaling is None:
            return config
        if scaling["rope_type"] == "linear":
            return {**config, "seq_len_interpolation_factor": scaling["factor"]}
        return {
            **config,
            "scale_positional_embedding": True,
            "scale_factor": scaling["factor"],
            "low_freq_factor": scaling["low_freq_factor"],
            "high_freq_factor": scaling["high_freq_factor"],
            "old_context_len": scaling["original_max_position_embeddings"],
        }

    def to_hugging_face(self, *, bos: int | None, eos: int | None) -> dict[str, Any]:
        """The object of a ``config.json`` that transformers 4.51 and 5 read alike: each looks for theta and dtype under another key."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "mlp_bias": False,
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling,
            "rope_parameters": {"rope_theta": self.rope_theta, **(self.rope_scaling or {"rope_type": "default"})},
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": self.dtype,
            "dtype": self.dtype,
            "use_cache": True,
            "vocab_size": self.vocab_size,
        }


def _refuse_others(config: dict[str, Any], source: str) -> None:
    if config.get("model_type") != "llama":
        raise ConfigError(f"{source}: model_type is {shown(config.get('model_type'))}; only 'llama' can be converted")
    for key, wanted in {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}.items():
        if config.get(key, wanted) != wanted:
            raise ConfigError(f"{source}: {key} is {shown(config[key])}; only {wanted!r} can be converted")
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise ConfigError(f"{source}: rotary scaling {shown(kind)} has no counterpart in NeMo; only linear and llama3 can be converted")
    dtype = config.get("torch_dtype") or config.get("dtype") or "float32"
    if dtype not in DTYPES:
        raise ConfigError(f"{source}: dtype {shown(dtype)} cannot be converted; known: {', '.join(DTYPES)}")


def _rope_scaling_of(cfg: Any) -> dict[str, Any] | None:
    if factor := cfg.get("seq_len_interpolation_factor"):
        return {"rope_type": "linear", "factor": float(factor)}
    if not cfg.get("scale_positional_embedding"):
        return None
    # The defaults are those of NeMo's mcore_model_customize.
    return {
        "rope_type": "llama3",
        "factor": float(cfg.get("scale_factor", 8)),
        "low_freq_factor": float(cfg.get("low_freq_factor", 1)),
        "high_freq_factor": float(cfg.get("high_freq_factor", 4)),
        "original_max_position_embeddings": int(cfg.get("old_context_len", 8192)),
    }
