"""A Megatron model written as a Hugging Face folder: shards gathered, padding cut off, ``steerlm.json`` beside."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from megatron.core import parallel_state
from torch import Tensor

from nemo_steerlm.core.errors import ConfigError
from nemo_steerlm.core.files import atomic_write
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.tokenization import load_tokenizer
from nemo_steerlm.formats.chat_template import write_chat_template
from nemo_steerlm.formats.families import FAMILIES
from nemo_steerlm.formats.families.base import ModelConfig
from nemo_steerlm.formats.hf_config import config_from_nemo, hugging_face_config
from nemo_steerlm.formats.model_card import write_model_card
from nemo_steerlm.formats.tokenizer_files import export_tokenizer_files
from nemo_steerlm.megatron import hf_import as layout
from nemo_steerlm.megatron.weights import write_weights


class AdapterWriter(Protocol):
    """What ``lora_export`` knows of a model's adapters, to be kept beside the merged weights."""

    def noting_rows(self, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Look at ``tensors`` as they pass."""

    def save(self, folder: Path, config: ModelConfig) -> None:
        """Write them."""


def export_hf(
    model: Any, folder: str | Path, info: ModelInfo | None = None, adapter: AdapterWriter | None = None, *, in_training: bool = False
) -> ModelInfo | None:
    """Write ``model``, a NeMo GPT model, as a Hugging Face folder. Every rank calls this.

    The folder appears by rename when it is whole, in place of an older one.

    Args:
        model: The model.
        folder: Where to.
        info: What goes into ``steerlm.json``, with its fingerprint and the digest of the weights; by default the model's own.
        adapter: Of rank 0, kept in a folder of that name in the export.
        in_training: The model still has adapters and the caller is within ``lora.merged``: their own tensors are left out.

    Returns:
        The description on rank 0, None elsewhere.

    Raises:
        ConfigError: If the model is of no family that can be written, or has adapters that nobody merged.
    """
    folder = Path(folder)
    info = model.info if info is None else info
    config = config_from_nemo(model.cfg, model.tokenizer.vocab_size)
    tensors = _hugging_face_tensors(_Gather(model, in_training=in_training), config)
    if torch.distributed.get_rank() == 0:
        info = _write(folder, tensors, config, model.tokenizer, info, adapter)
    else:
        info = None
        for _ in tensors:  # ranks send while rank 0 writes
            pass
    torch.distributed.barrier()
    return info


def _write(
    folder: Path,
    tensors: Iterator[tuple[str, Tensor]],
    config: ModelConfig,
    nemo_tokenizer: Any,
    info: ModelInfo | None,
    adapter: AdapterWriter | None,
) -> ModelInfo | None:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    digest = write_weights(partial, tensors if adapter is None else adapter.noting_rows(tensors))
    if adapter is not None:
        adapter.save(partial / "adapter", config)
    export_tokenizer_files(nemo_tokenizer, partial)
    _write_configs(partial, config, nemo_tokenizer, info)
    if info is not None:
        info = write_chat_template(partial, with_fingerprint(info, digest))
        info.save(partial)
        write_model_card(partial, info, config)
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)
    return info


def with_fingerprint(info: ModelInfo, weights_digest: str) -> ModelInfo:
    """``info`` with the digest of itself and its weights."""
    plain = msgspec.structs.replace(info, fingerprint="", chat_template=msgspec.UNSET)
    digest = hashlib.sha256(weights_digest.encode() + msgspec.json.encode(plain)).hexdigest()
    return msgspec.structs.replace(info, fingerprint=f"sha256:{digest}")


def _write_configs(folder: Path, config: ModelConfig, nemo_tokenizer: Any, info: ModelInfo | None) -> None:
    bos, eos = (i if i is not None and i >= 0 else None for i in (nemo_tokenizer.bos_id, nemo_tokenizer.eos_id))
    _write_json(folder / "config.json", hugging_face_config(config, bos=bos, eos=eos))
    stops = [] if eos is None else [eos]
    if info is not None and (turn_start := load_tokenizer(folder).token_id(info.tokens.turn_start)) is not None:
        # An answer ends where the next turn starts.
        stops.append(turn_start)
    _write_json(folder / "generation_config.json", {"bos_token_id": bos, "eos_token_id": stops[0] if len(stops) == 1 else stops or None})


def _write_json(path: Path, data: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(data, indent=2) + "\n")


def _hugging_face_tensors(whole: _Gather, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Every weight by its Hugging Face name, whole, as the config says, on global rank 0; the other ranks take part and get nothing."""
    dtype = getattr(torch, config.dtype)
    for name, weight in _whole_weights(whole, config):
        yield name, weight.to(dtype)


def _whole_weights(whole: _Gather, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    for rows in whole(layout.EMBEDDING):
        yield "model.embed_tokens.weight", rows[: config.vocab_size]
    for i in range(config.num_hidden_layers):
        for part in layout.layer_parts(FAMILIES[config.family]):
            for tensor in whole(f"layers.{i}.{part}"):
                for name, weight in unfused(part, tensor, config):
                    yield f"model.layers.{i}.{name}.{part.rpartition('.')[2]}", weight
    for norm in whole(layout.FINAL_NORM):
        yield "model.norm.weight", norm
    if not config.tie_word_embeddings:
        for rows in whole(layout.OUTPUT):
            yield "lm_head.weight", rows[: config.vocab_size]


def unfused(part: str, tensor: Tensor, config: ModelConfig) -> list[tuple[str, Tensor]]:
    """One part of a layer as Hugging Face's matrices. ``tensor`` is the ranks' shards one after the other."""
    fused = FAMILIES[config.family].fused
    if part in (layout.QKV, layout.QKV_BIAS):
        groups, size = config.num_key_value_heads, config.head_dim
        blocks = tensor.unflatten(0, (groups, -1)).split([config.num_attention_heads // groups * size, size, size], dim=1)
        rows = [block.flatten(0, 1) for block in blocks]
        return (
            [("self_attn.qkv_proj", torch.cat(rows))] if fused else [(f"self_attn.{x}_proj", r) for x, r in zip("qkv", rows, strict=True)]
        )
    if part == layout.FC1:
        ranks = parallel_state.get_tensor_model_parallel_world_size()
        gate, up = (rows.flatten(0, 1) for rows in tensor.unflatten(0, (ranks, 2, -1)).unbind(dim=1))
        return [("mlp.gate_up_proj", torch.cat([gate, up]))] if fused else [("mlp.gate_proj", gate), ("mlp.up_proj", up)]
    return [(layout.WHOLE_PARTS[part], tensor)]


class _Gather:
    """Brings parameters together on global rank 0, one at a time. Every rank calls it with the same names in the same order."""

    def __init__(self, model: Any, *, in_training: bool = False) -> None:
        named = {name: p for module in layout.gpt_modules(model) for name, p in layout.named_parameters(module)}
        self._mine = {name: p for name, p in named.items() if "adapter_layer" not in name}
        if len(self._mine) < len(named) and not in_training:
            raise ConfigError("the model has adapters; merge them (nemo_steerlm.megatron.lora.merge) before it is exported")
        # Tensor-parallel rank 0 of the first data-parallel replica speaks for its pipeline stage.
        speaks = parallel_state.get_tensor_model_parallel_rank() == 0 and parallel_state.get_data_parallel_rank() == 0
        everyone: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everyone, {n: (tuple(p.shape), p.dtype) for n, p in self._mine.items()} if speaks else {})
        self._owner: dict[str, tuple[int, tuple[int, ...], torch.dtype]] = {}
        for rank, names in enumerate(everyone):
            for name, (shape, dtype) in names.items():
                self._owner.setdefault(name, (rank, shape, dtype))

    def __call__(self, name: str) -> Iterator[Tensor]:
        """The whole parameter on rank 0, nothing elsewhere."""
        rank, (owner, shape, dtype) = torch.distributed.get_rank(), self._owner[name]
        if name in self._mine:
            tensor = self._of_my_stage(name)
            if rank == owner == 0:
                yield tensor
            elif rank == owner:
                torch.distributed.send(tensor.contiguous(), dst=0)
        elif rank == 0:
            device = next(iter(self._mine.values())).device
            received = torch.empty(_whole_shape(name, shape), dtype=dtype, device=device)
            torch.distributed.recv(received, src=owner)
            yield received

    def _of_my_stage(self, name: str) -> Tensor:
        local = self._mine[name].detach()
        dim = layout.split_dimension(name)
        return local if dim is None else _gather_tensor_parallel(local, dim)


def _whole_shape(name: str, shape: tuple[int, ...]) -> list[int]:
    dim = layout.split_dimension(name)
    return [n * parallel_state.get_tensor_model_parallel_world_size() if i == dim else n for i, n in enumerate(shape)]


def _gather_tensor_parallel(local: Tensor, dim: int) -> Tensor:
    size = parallel_state.get_tensor_model_parallel_world_size()
    if size == 1:
        return local
    parts = [torch.empty_like(local, memory_format=torch.contiguous_format) for _ in range(size)]
    torch.distributed.all_gather(parts, local.contiguous(), group=parallel_state.get_tensor_model_parallel_group())
    return torch.cat(parts, dim=dim)
