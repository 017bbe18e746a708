"""Hugging Face checkpoints into an initialised Megatron model under any TP and PP (``hf_export`` goes the other way).

The two differ in layout only:

* Megatron's ``linear_qkv`` holds one block a query group: the group's queries, then its key, then its value;
* ``linear_fc1`` holds, for each tensor-parallel rank, its rows of the gate and then its rows of ``up``;
* a family may hold queries, keys and values as one matrix, one after the other, and gate and up as another (``Family.fused``);
* the embedding is padded to a multiple of ``make_vocab_size_divisible_by * tensor_model_parallel_size``.

Rows of added tokens and of the padding are drawn as the rows there are, the same under every layout. They must differ:
control tokens that all start as the mean row are one token to the model, for good where LoRA freezes the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor

from nemo_steerlm.core.errors import ConfigError
from nemo_steerlm.formats.checkpoint import check_checkpoint, not_finite_error
from nemo_steerlm.formats.families import FAMILIES
from nemo_steerlm.formats.families.base import Family, ModelConfig
from nemo_steerlm.formats.hf_config import config_from_nemo, load_config, nemo_config
from nemo_steerlm.formats.tokenizer_files import source_vocabulary_size
from nemo_steerlm.megatron.weights import Weights, open_weights

# Parts of a layer, by Megatron's name.
QKV = "self_attention.linear_qkv.weight"
QKV_BIAS = "self_attention.linear_qkv.bias"
Q_NORM = "self_attention.q_layernorm.weight"
K_NORM = "self_attention.k_layernorm.weight"
PROJ = "self_attention.linear_proj.weight"
FC1 = "mlp.linear_fc1.weight"
FC2 = "mlp.linear_fc2.weight"
NORM_1 = "input_layernorm.weight"
NORM_2 = "pre_mlp_layernorm.weight"
POST_1 = "post_attention_norm.weight"
POST_2 = "post_mlp_norm.weight"
_FUSED = {"self_attention.linear_qkv.layer_norm_weight": NORM_1, "mlp.linear_fc1.layer_norm_weight": NORM_2}
"""Norms that TransformerEngine keeps inside the next matrix's module."""
WHOLE_PARTS = {
    NORM_1: "input_layernorm",
    NORM_2: "post_attention_layernorm",
    POST_1: "post_attention_layernorm",
    POST_2: "post_feedforward_layernorm",
    Q_NORM: "self_attn.q_norm",
    K_NORM: "self_attn.k_norm",
    PROJ: "self_attn.o_proj",
    FC2: "mlp.down_proj",
}
"""The parts that are one matrix or vector on either side, and Hugging Face's name of it."""


def layer_parts(family: Family) -> tuple[str, ...]:
    """The parts of each layer of a model of this family, in the order they are exported in."""
    attention = QKV, *((QKV_BIAS,) if family.qkv_bias else ()), *((Q_NORM, K_NORM) if family.qk_norm else ()), PROJ
    if family.post_norm:
        return *attention, POST_1, FC1, FC2, POST_2
    return NORM_1, *attention, NORM_2, FC1, FC2


EMBEDDING = "embedding.word_embeddings.weight"
FINAL_NORM = "decoder.final_layernorm.weight"
OUTPUT = "output_layer.weight"


def split_dimension(name: str) -> int | None:
    """The dimension that tensor parallelism splits of the parameter called ``name``; None for norms, which every rank has whole."""
    if name in (EMBEDDING, OUTPUT) or name.endswith((QKV, QKV_BIAS, FC1)):
        return 0
    return 1 if name.endswith((PROJ, FC2)) else None


_SAME_SHAPE = (
    "family",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "unrotated",
)


def model_config_from_hf(source: str | Path) -> dict[str, Any]:
    """The architecture part of NeMo's ``model`` config for a Hugging Face folder or a ``.gguf``.

    Raises UsageError where ``source`` is neither, ConfigError where its model cannot be used.
    """
    return nemo_config(load_config(source))


def load_hf_weights(model: Any, source: str | Path) -> None:
    """Load ``source``'s weights into ``model``, a NeMo GPT model. Every rank calls this and reads its own shard.

    Raises ConfigError naming the first size in which the two differ, or what ``check_checkpoint`` finds.
    """
    config = check_checkpoint(source)
    _require_same_shape(config, config_from_nemo(model.cfg, config.vocab_size), source)
    weights = _Finite(source)
    known = min(config.vocab_size, source_vocabulary_size(source))
    with torch.no_grad():
        for module in gpt_modules(model):
            for name, parameter in named_parameters(module):
                parameter.copy_(_shard(name, parameter, weights, config, known))


class _Finite:
    """The weights of a checkpoint; one that is NaN or infinite somewhere is refused when it is read."""

    def __init__(self, source: str | Path) -> None:
        self._source, self._weights = source, open_weights(source)

    @property
    def names(self) -> frozenset[str]:
        return self._weights.names

    def tensor(self, name: str) -> Tensor:
        tensor = self._weights.tensor(name)
        if not torch.isfinite(tensor).all():
            raise not_finite_error(self._source, name)
        return tensor


def _require_same_shape(source: ModelConfig, model: ModelConfig, path: str | Path) -> None:
    for field in _SAME_SHAPE:
        if getattr(source, field) != getattr(model, field):
            raise ConfigError(f"{path}: {field} is {getattr(source, field)}, the model's is {getattr(model, field)}")
    if model.tie_word_embeddings and not source.tie_word_embeddings:
        raise ConfigError(f"{path}: embeddings are not tied; set model.share_embeddings_and_output_weights=False")


def gpt_modules(model: Any) -> list[torch.nn.Module]:
    """The GPT modules of this rank, out of the wrappers of mixed precision and data parallelism."""
    modules = []
    for module in model.model if isinstance(model.model, list) else [model.model]:
        while not hasattr(module, "decoder"):
            module = module.module  # noqa: PLW2901
        modules.append(module)
    return modules


def named_parameters(module: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters by canonical name, ``layers.N`` counted over the whole model from 0."""
    numbers = [layer.layer_number - 1 for layer in module.decoder.layers]
    for name, parameter in module.named_parameters():
        if name.startswith("decoder.layers."):
            local, _, part = name.removeprefix("decoder.layers.").partition(".")
            yield f"layers.{numbers[int(local)]}.{_FUSED.get(part, part)}", parameter
        else:
            yield name, parameter


def _shard(name: str, parameter: Tensor, weights: Weights, config: ModelConfig, known: int) -> Tensor:
    """This rank's part of one parameter, in Megatron's layout."""
    if name == EMBEDDING or (name == OUTPUT and config.tie_word_embeddings):
        return _rows(weights.tensor("model.embed_tokens.weight"), parameter.size(0), known)
    if name == OUTPUT:
        return _rows(weights.tensor("lm_head.weight"), parameter.size(0), known)
    if name == FINAL_NORM:
        return weights.tensor("model.norm.weight")
    _, number, part = name.split(".", 2)
    return _layer_shard(part, weights, f"model.layers.{number}", config)


def _layer_shard(part: str, weights: Weights, prefix: str, config: ModelConfig) -> Tensor:
    if part in (QKV, QKV_BIAS):
        return _fused_qkv(*_queries_keys_values(part, weights, prefix, config), config.num_key_value_heads)
    if part == FC1:
        return torch.cat([_part(rows, 0) for rows in _gate_and_up(weights, prefix, config)])
    if part not in WHOLE_PARTS:
        raise ConfigError(f"parameter {part} has no counterpart in a Hugging Face {config.family} model")
    tensor = weights.tensor(f"{prefix}.{WHOLE_PARTS[part]}.weight")
    dim = split_dimension(part)
    return tensor if dim is None else _part(tensor, dim)


def _queries_keys_values(part: str, weights: Weights, prefix: str, config: ModelConfig) -> tuple[Tensor, ...]:
    kind = part.rpartition(".")[2]
    if not FAMILIES[config.family].fused:
        return tuple(weights.tensor(f"{prefix}.self_attn.{x}_proj.{kind}") for x in "qkv")
    keys = config.num_key_value_heads * config.head_dim
    return weights.tensor(f"{prefix}.self_attn.qkv_proj.{kind}").split([config.num_attention_heads * config.head_dim, keys, keys])


def _gate_and_up(weights: Weights, prefix: str, config: ModelConfig) -> tuple[Tensor, ...]:
    if not FAMILIES[config.family].fused:
        return tuple(weights.tensor(f"{prefix}.mlp.{x}_proj.weight") for x in ("gate", "up"))
    return weights.tensor(f"{prefix}.mlp.gate_up_proj.weight").split(config.intermediate_size)


def _part(tensor: Tensor, dim: int) -> Tensor:
    """This tensor-parallel rank's part of ``tensor``."""
    size, rank = parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_tensor_model_parallel_rank()
    step = tensor.size(dim) // size
    return tensor.narrow(dim, rank * step, step)


def _fused_qkv(query: Tensor, key: Tensor, value: Tensor, groups: int) -> Tensor:
    """``[q, k, v]`` interleaved by query group; groups are what ranks share out."""
    blocks = [_part(x.unflatten(0, (groups, -1)), 0) for x in (query, key, value)]
    return torch.cat(blocks, dim=1).flatten(0, 1)


def _rows(embedding: Tensor, count: int, known: int) -> Tensor:
    """This rank's ``count`` rows; those from ``known`` on are drawn with the mean and the standard deviation of the ones before."""
    start = count * parallel_state.get_tensor_model_parallel_rank()
    there = embedding[min(start, known) : min(start + count, known)]
    if len(there) == count:
        return there
    old = embedding[:known].float()
    # Row by row from ``known`` on: where the padding ends, and which rank has a row, changes none.
    noise = torch.randn(start + count - known, old.size(1), generator=torch.Generator().manual_seed(known))
    drawn = (old.mean(dim=0) + noise * old.std(dim=0)).to(embedding.dtype)
    return torch.cat([there, drawn[len(drawn) - (count - len(there)) :]])
