"""Which records make which batch. The order depends on the seed and the epoch alone, never on how many processes share the work."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nemo_steerlm.core.errors import ConfigError
from nemo_steerlm.megatron.micro_batch import MicroBatch
from nemo_steerlm.megatron.packing import Packing
from nemo_steerlm.training.dataset import ChatDataset
from nemo_steerlm.training.mixture import Mixture

Parts = tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Batch sizes in samples, and this process's place among the data-parallel ranks."""

    micro_batch_size: int
    global_batch_size: int
    data_parallel_size: int = 1
    data_parallel_rank: int = 0

    @property
    def micro_batches(self) -> int:
        """Micro batches of one rank in one global batch."""
        return self.global_batch_size // (self.micro_batch_size * self.data_parallel_size)

    def check(self, keys: str) -> None:
        """Raise ConfigError where a global batch cannot be divided evenly; ``keys`` names the section that is wrong."""
        share = self.micro_batch_size * self.data_parallel_size
        if self.micro_batch_size < 1 or self.global_batch_size < 1:
            raise ConfigError(f"{keys}: batch sizes must be at least 1")
        if self.global_batch_size % share:
            raise ConfigError(
                f"{keys}.global_batch_size={self.global_batch_size} is no multiple of micro_batch_size={self.micro_batch_size} × "
                f"data parallel size {self.data_parallel_size}; {_nearest(self.global_batch_size, share)}"
            )


def _nearest(size: int, share: int) -> str:
    below = size // share * share
    return f"write {below} or {below + share}" if below else f"write {share}"


@dataclasses.dataclass(frozen=True, slots=True)
class TrainingOrder:
    """Records of each global batch, epoch after epoch; the last, incomplete batch of an epoch is dropped."""

    records: int
    """Of an epoch."""
    global_batch_size: int
    seed: int
    shuffle: bool
    parts: Parts = ()
    """Where they come from several files: how many each has, and its weight."""

    @classmethod
    def of(cls, data: ChatDataset | Mixture, global_batch_size: int, seed: int, *, shuffle: bool) -> TrainingOrder:
        """The order of ``data``'s records."""
        parts = data.parts if isinstance(data, Mixture) else ()
        return cls(epoch_size(data), global_batch_size, seed, shuffle, parts)

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch."""
        return self.records // self.global_batch_size

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """Record indices of global batch number ``step``, counted over epochs."""
        epoch, within = divmod(step, self.steps_per_epoch)
        window = slice(within * self.global_batch_size, (within + 1) * self.global_batch_size)
        if self.shuffle or self.parts:
            return _epoch(self.parts or ((self.records, 1.0),), self.seed, epoch, self.shuffle)[window]
        return np.arange(window.start, window.stop, dtype=np.int64)


def epoch_size(data: ChatDataset | Mixture) -> int:
    """How many records an epoch has."""
    return sum(round(count * weight) for count, weight in data.parts) if isinstance(data, Mixture) else len(data)


@functools.lru_cache(maxsize=1)
def _epoch(parts: Parts, seed: int, epoch: int, shuffle: bool) -> npt.NDArray[np.int64]:
    """An epoch's order: eight bytes per record, made once per epoch."""
    random, start, found = np.random.default_rng((seed, epoch)), 0, []
    for count, weight in parts:
        own = np.arange(start, start + count, dtype=np.int64)
        times, more = divmod(round(count * weight), count)
        found += [own] * times
        if more:
            found.append(np.sort(random.choice(own, more, replace=False)))
        start += count
    order = np.concatenate(found)
    return random.permutation(order) if shuffle else order


@dataclasses.dataclass(frozen=True, slots=True)
class Collator:
    """Turns records into micro batches padded to the longest of them, and no further than ``multiple_of`` asks."""

    dataset: ChatDataset | Mixture
    pad_id: int
    multiple_of: int = 1
    same_length: bool = False
    """Pad all micro batches of one step to one length: pipeline stages agree on shapes before they talk."""
    packed: bool = False
    """For a model that ``packs``."""
    rows_apart: bool = False
    """For one that ``packs_rows_apart``."""
    context: tuple[int, int] = (0, 1)
    """This rank's place among those that share each sequence, and how many they are."""

    def micro_batches(self, indices: npt.NDArray[np.int64], sizes: Sizes) -> list[MicroBatch]:
        """This rank's part of a global batch. Records of similar length go together: padding costs as much as text.

        Every micro batch's ``loss_scale`` is such that, summed over micro batches and averaged over data-parallel ranks as Megatron
        does it, the loss is the mean over all learned tokens of ``indices``.
        """
        lengths = self.dataset.lengths(indices)
        by_length = indices[np.argsort(lengths, kind="stable")]
        total = self.dataset.learned_tokens(indices)
        chunks = [by_length[i : i + sizes.micro_batch_size] for i in range(0, len(by_length), sizes.micro_batch_size)]
        mine = chunks[sizes.data_parallel_rank :: sizes.data_parallel_size]
        # Gradients are averaged over the ranks that share a sequence as over the others, but add up.
        scale = len(mine) * sizes.data_parallel_size * self.context[1] / total
        longest = int(lengths.max()) if self.same_length else 0
        return [self._collate(chunk, sizes.micro_batch_size, longest, scale) for chunk in mine]

    def _collate(self, indices: npt.NDArray[np.int64], rows: int, longest: int, scale: float) -> MicroBatch:
        records = [self.dataset.record(int(i)) for i in indices]
        longest = max(longest, *(len(ids) - 1 for ids, _ in records))
        width = -(-longest // self.multiple_of) * self.multiple_of
        tokens = np.full((rows, width), self.pad_id, dtype=np.int64)
        labels = tokens.copy()
        mask = np.zeros((rows, width), dtype=np.bool_)
        for row, (ids, learned) in enumerate(records):
            length = len(ids) - 1
            tokens[row, :length] = ids[:-1]
            labels[row, :length] = ids[1:]
            mask[row, :length] = learned[1:]
        batch = MicroBatch(
            tokens=torch.from_numpy(tokens),
            labels=torch.from_numpy(labels),
            loss_mask=torch.from_numpy(mask),
            position_ids=torch.arange(width).expand(rows, width),
            loss_scale=torch.tensor(scale, dtype=torch.float32),
        )
        if self.context[1] > 1:
            for name in ("tokens", "labels", "loss_mask", "position_ids"):
                batch[name] = context_part(batch[name], *self.context)
        if self.packed:
            pack = Packing.of_rows if self.rows_apart else Packing.of
            batch.packing = pack(batch["tokens"], [len(ids) - 1 for ids, _ in records])
        batch.records = (*(int(i) for i in indices), *(-1 for _ in range(rows - len(indices))))
        return batch


def context_part(rows: Tensor, rank: int, size: int) -> Tensor:
    """What context-parallel rank ``rank`` of ``size`` has of ``rows`` ``[b, s]``: one part of 2 x size from the front, one from the end.

    Later positions are dearer, so every rank has as much to do (NeMo 2.4.1, ``get_batch_on_this_context_parallel_rank``).
    """
    parts = rows.chunk(2 * size, dim=1)
    return torch.cat((parts[rank], parts[2 * size - 1 - rank]), dim=1)
