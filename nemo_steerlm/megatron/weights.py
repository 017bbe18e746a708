"""Weights under Hugging Face names: read lazily from safetensors, ``.bin`` or GGUF, written as (sharded) safetensors with their digest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.core.files import atomic_write, default_mode
from nemo_steerlm.formats.checkpoint_files import SAFETENSORS_INDEX, files_by_name, safetensors_files, torch_files
from nemo_steerlm.formats.gguf_files import open_gguf

SHARD_BYTES = 5 * 2**30
"""transformers' own size of a shard."""


class Weights(Protocol):
    """Named tensors, each read when asked for."""

    @property
    def names(self) -> frozenset[str]:
        """What there is."""

    def tensor(self, name: str) -> Tensor:
        """One weight, rows first. The caller keeps what it needs of it."""


def open_weights(source: str | Path) -> Weights:
    """The weights of a Hugging Face folder or a ``.gguf``. Raises UsageError where there are none."""
    source = Path(source)
    if source.is_file():
        return _GGUFWeights(source)
    return _SafetensorsWeights(source) if safetensors_files(source) else _TorchWeights(source)


class _SafetensorsWeights:
    """Memory-mapped: a rank that takes a slice of a tensor reads that slice."""

    def __init__(self, folder: Path) -> None:
        self._open: dict[str, Any] = {}
        self._folder = folder
        if (folder / SAFETENSORS_INDEX).is_file():
            self._files = files_by_name(folder, SAFETENSORS_INDEX)
        else:
            self._files = dict.fromkeys(self._file("model.safetensors").keys(), "model.safetensors")

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._files)

    def tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._file(self._files[name]).get_tensor(name)
        return tensor

    def _file(self, name: str) -> Any:
        if name not in self._open:
            try:
                self._open[name] = safe_open(self._folder / name, framework="pt")
            except SafetensorError as error:
                raise UsageError(f"{self._folder / name}: {error}; download the model again") from error
        return self._open[name]


class _TorchWeights:
    """``pytorch_model*.bin``, memory-mapped by torch."""

    def __init__(self, folder: Path) -> None:
        self._tensors: dict[str, Tensor] = {}
        for file in torch_files(folder):
            self._tensors |= torch.load(file, map_location="cpu", mmap=True, weights_only=True)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name]


class _GGUFWeights:
    """Dequantized one tensor at a time."""

    def __init__(self, path: Path) -> None:
        self._file = open_gguf(path)

    @property
    def names(self) -> frozenset[str]:
        return self._file.names

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self._file.tensor(name))


def write_weights(folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int = SHARD_BYTES) -> str:
    """Write ``tensors`` as ``model.safetensors``, or as shards with an index where they are larger than ``shard_bytes``.

    No more than one shard is in memory. Returns the digest of names, types, shapes and values in the order given, which does not depend
    on how they were split.
    """
    digest = hashlib.sha256()
    shards: list[dict[str, int]] = []
    shard: dict[str, Tensor] = {}

    def flush() -> None:
        file = folder / f"shard-{len(shards)}"
        save_file(shard, file, metadata={"format": "pt"})
        file.chmod(default_mode())  # safetensors makes it 0600: nobody else's server could read it
        shards.append({name: tensor.nbytes for name, tensor in shard.items()})
        shard.clear()

    for name, given in tensors:
        tensor = given.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.flatten().view(torch.uint8).numpy()))
        if shard and sum(t.nbytes for t in shard.values()) + tensor.nbytes > shard_bytes:
            flush()
        shard[name] = tensor
    flush()
    if len(shards) == 1:
        os.replace(folder / "shard-0", folder / "model.safetensors")
        return digest.hexdigest()
    weight_map = {}
    for i, sizes in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        os.replace(folder / f"shard-{i}", folder / file)
        weight_map |= dict.fromkeys(sizes, file)
    total = sum(size for sizes in shards for size in sizes.values())
    with atomic_write(folder / SAFETENSORS_INDEX) as index:
        index.write(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n")
    return digest.hexdigest()
