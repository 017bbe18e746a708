"""A model's architecture: read from ``config.json``, GGUF or NeMo's config, written as NeMo's config or ``config.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from nemo_steerlm.core.errors import ConfigError, UsageError, shown
from nemo_steerlm.formats.families import FAMILIES, family_of
from nemo_steerlm.formats.families.base import Family, ModelConfig
from nemo_steerlm.formats.gguf_files import open_gguf

DTYPES = ("float32", "bfloat16", "float16")
_PRECISIONS = {"bf16": "bfloat16", "bf16-mixed": "bfloat16", "16": "float16", "16-mixed": "float16"}

FAMILY_KEY = "hf_model_type"
"""This project's key in NeMo's ``model`` config: the family a model came from, where its architecture does not tell."""

UNROTATED_KEY = "no_rope_freq"
"""Megatron-Core's, in NeMo's ``model`` config: a 1 for each layer that does not rotate queries and keys, a 0 for the others."""

MULTIPLIERS = {
    "embedding_multiplier": "embedding_multiplier",
    "attention_multiplier": "softmax_scale",
    "residual_multiplier": "residual_multiplier",
    "logits_divisor": "logits_divisor",
}
"""Fields of ModelConfig and their keys in NeMo's ``model`` config, which are this project's but for ``softmax_scale``."""
_PLAIN = {field.name: field.default for field in msgspec.structs.fields(ModelConfig)}

_SCALING_KEYS = {
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
}
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_QUANTIZED = ("quantization_config", "compression_config", "quantization")


def load_config(source: str | Path) -> ModelConfig:
    """Of a Hugging Face folder or a ``.gguf``. Raises UsageError where there is none, ConfigError where its model cannot be used."""
    source = Path(source)
    if source.is_file():
        return config_from_dict(open_gguf(source).config(), str(source))
    path = source / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UsageError(f"{source}: no config.json; give a Hugging Face model folder or a .gguf file") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON ({error})") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path}: holds {shown(config)}, not an object")
    return config_from_dict(config, str(path))


def config_from_dict(config: dict[str, Any], source: str = "config.json") -> ModelConfig:
    """From the object in a ``config.json`` of transformers 4 or 5. Raises ConfigError naming ``source`` and the key."""
    for key in _QUANTIZED:
        if config.get(key):
            method = config[key].get("quant_method") or config[key].get("quant_algo") if isinstance(config[key], dict) else None
            how = f"quantized ({method})" if method else "quantized"
            raise ConfigError(f"{source}: {key}: the weights are {how}; take the model's checkpoint in bfloat16 or float32")
    family = family_of(config, source)
    config = {key: value for key, value in {**family.defaults, **config}.items() if value is not None}
    family.check(config, source)
    sizes: dict[str, Any] = {key: _size(config, key, source) for key in _SIZES}
    heads = sizes["num_attention_heads"]
    theta, scaling = _rope(config, source, family.rope_theta)
    dtype = str(config.get("torch_dtype") or config.get("dtype") or "float32").removeprefix("torch.")
    if dtype not in DTYPES:
        raise ConfigError(f"{source}: dtype {shown(dtype)} cannot be converted; known: {', '.join(DTYPES)}")
    positions = _size({"max_position_embeddings": 2048, **config}, "max_position_embeddings", source)
    window = family.window(config)
    found = ModelConfig(
        family=family.model_type,
        **sizes,
        num_key_value_heads=_size({"num_key_value_heads": heads, **config}, "num_key_value_heads", source),
        head_dim=_size({"head_dim": sizes["hidden_size"] // heads, **config}, "head_dim", source),
        max_position_embeddings=min(positions, window) if window else positions,
        rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        dtype=dtype,
        **family.own_fields(config),
    )
    if heads % found.num_key_value_heads:
        raise ConfigError(f"{source}: num_attention_heads is {heads}, no multiple of num_key_value_heads {found.num_key_value_heads}")
    return found


def _size(config: Mapping[str, Any], key: str, source: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise ConfigError(f"{source}: {key} is {'missing' if value is None else shown(value)}; a whole number is needed")
    return value


def _rope(config: Mapping[str, Any], source: str, theta: float) -> tuple[float, dict[str, Any] | None]:
    """Base (``theta`` where none is given) and scaling of the rotary embeddings. transformers 5 has both in ``rope_parameters``."""
    old, new = (_scaling(config.get(key) or {}, key, source) for key in ("rope_scaling", "rope_parameters"))
    if config.get("rope_scaling") and config.get("rope_parameters") and old[1] != new[1]:
        raise ConfigError(f"{source}: rope_scaling says {shown(old[1])} and rope_parameters {shown(new[1])}; keep the one that is true")
    thetas = {float(value) for value in (config.get("rope_theta"), old[0], new[0]) if value is not None}
    if len(thetas) > 1:
        raise ConfigError(f"{source}: rope_theta has several values, {shown(sorted(thetas))}; keep the one that is true")
    return (thetas.pop() if thetas else theta), new[1] or old[1]


def _scaling(rope: Any, key: str, source: str) -> tuple[Any, dict[str, Any] | None]:
    if not isinstance(rope, dict):
        raise ConfigError(f"{source}: {key} is {shown(rope)}, not an object")
    rope = {("rope_type" if name == "type" else name): value for name, value in rope.items()}
    theta, kind = rope.pop("rope_theta", None), rope.pop("rope_type", "default")
    if rope.pop("partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError(f"{source}: {key}: partial_rotary_factor is not 1; such a model cannot be converted")
    if kind == "default":
        return theta, None
    if kind not in _SCALING_KEYS:
        raise ConfigError(
            f"{source}: {key}: rotary scaling {shown(kind)} has no counterpart in NeMo; known: default, {', '.join(_SCALING_KEYS)}"
        )
    if missing := _SCALING_KEYS[kind] - set(rope):
        raise ConfigError(f"{source}: {key}: rotary scaling {kind} needs {', '.join(sorted(missing))}")
    return theta, {"rope_type": kind, **{name: value for name, value in rope.items() if name in _SCALING_KEYS[kind]}}


def config_from_nemo(cfg: Any, vocab_size: int) -> ModelConfig:
    """From a NeMo model config. Raises ConfigError where the model is of no family that can be written for Hugging Face."""
    wanted = {"normalization": "rmsnorm", "position_embedding_type": "rope", "rotary_percentage": 1.0, "bias": False}
    for key, value in wanted.items():
        if cfg.get(key) != value:
            raise ConfigError(f"model.{key}={cfg.get(key)}: only {key}={value} can be written as a Hugging Face checkpoint")
    if cfg.get("activation") not in ("fast-swiglu", "swiglu"):
        raise ConfigError(f"model.activation={cfg.get('activation')}: only SwiGLU can be written as a Hugging Face checkpoint")
    heads = cfg.num_attention_heads
    return ModelConfig(
        family=_family_of_nemo(cfg).model_type,
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
        dtype=_PRECISIONS.get(str(cfg.get("precision")), "float32"),
        unrotated=tuple(layer for layer, still in enumerate(cfg.get(UNROTATED_KEY) or ()) if still),
        **multipliers(cfg),
    )


def named_family(cfg: Any) -> Family:
    """The family that a NeMo ``model`` config names, else Llama's: how its layers are put together."""
    return FAMILIES.get(cfg.get(FAMILY_KEY) or "llama", FAMILIES["llama"])


def multipliers(cfg: Any) -> dict[str, Any]:
    """Those of ModelConfig that a NeMo ``model`` config has."""
    return {field: cfg.get(key) for field, key in MULTIPLIERS.items() if cfg.get(key) is not None}


def _family_of_nemo(cfg: Any) -> Family:
    """The family whose layers these are: the one it came from, where it says so, else the first in the registry that fits."""
    features = bool(cfg.get("qkv_bias")), bool(cfg.get("qk_layernorm"))
    unrotated = bool(cfg.get(UNROTATED_KEY))
    named = cfg.get(FAMILY_KEY)
    for family in FAMILIES.values() if named is None else [FAMILIES[named]] if named in FAMILIES else []:
        if (family.qkv_bias, family.qk_norm) == features and family.unrotated >= unrotated:
            return family
    raise ConfigError(
        f"model.{FAMILY_KEY}={named}, qkv_bias={features[0]}, qk_layernorm={features[1]}, {UNROTATED_KEY}={cfg.get(UNROTATED_KEY)}: "
        f"none of {', '.join(FAMILIES)} has such layers"
    )


def nemo_config(config: ModelConfig) -> dict[str, Any]:
    """The architecture part of NeMo's ``model`` config. The vocabulary is not in it: NeMo takes its size from the tokenizer."""
    family = FAMILIES[config.family]
    theta = config.rope_theta
    return {
        "mcore_gpt": True,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.intermediate_size,
        "num_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_query_groups": config.num_key_value_heads,
        "kv_channels": config.head_dim,
        "encoder_seq_length": config.max_position_embeddings,
        "max_position_embeddings": config.max_position_embeddings,
        "layernorm_epsilon": config.rms_norm_eps,
        "normalization": "rmsnorm",
        "activation": "fast-swiglu",
        "bias": False,
        "position_embedding_type": "rope",
        "rotary_percentage": 1.0,
        "rotary_base": int(theta) if theta == int(theta) else theta,
        "share_embeddings_and_output_weights": config.tie_word_embeddings,
        "apply_query_key_layer_scaling": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "ffn_dropout": 0.0,
        **({FAMILY_KEY: family.model_type} if family.model_type != "llama" else {}),
        **({"qkv_bias": True} if family.qkv_bias else {}),
        **({"qk_layernorm": True} if family.qk_norm else {}),
        **({UNROTATED_KEY: [int(i in config.unrotated) for i in range(config.num_hidden_layers)]} if config.unrotated else {}),
        **{key: value for field, key in MULTIPLIERS.items() if (value := getattr(config, field)) != _PLAIN[field]},
        **_nemo_scaling(config.rope_scaling),
    }


def _nemo_scaling(scaling: Mapping[str, Any] | None) -> dict[str, Any]:
    if scaling is None:
        return {}
    if scaling["rope_type"] == "linear":
        return {"seq_len_interpolation_factor": scaling["factor"]}
    return {
        "scale_positional_embedding": True,
        "scale_factor": scaling["factor"],
        "low_freq_factor": scaling["low_freq_factor"],
        "high_freq_factor": scaling["high_freq_factor"],
        "old_context_len": scaling["original_max_position_embeddings"],
    }


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


def hugging_face_config(config: ModelConfig, *, bos: int | None, eos: int | None) -> dict[str, Any]:
    """The object of a ``config.json`` that transformers 4.51 and 5 read alike: each looks for theta and dtype under another key."""
    family = FAMILIES[config.family]
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **family.written,
        **family.own_keys(config),
        "attention_dropout": 0.0,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling,
        "rope_parameters": {"rope_theta": config.rope_theta, **(config.rope_scaling or {"rope_type": "default"})},
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": config.dtype,
        "dtype": config.dtype,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }
