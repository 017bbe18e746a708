"""Blocks of tokens, and a KV cache of independent rows: the basis of scoring and continuous batching for every engine."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from transformers.cache_utils import Cache

_GROW = 64
"""Columns a cache grows by at least."""
PIECE_TOKENS = 16_384
"""Of one forward: more are not read faster."""
PIECE_MASK = 1 << 25
"""Elements of one forward's attention mask, which grows with its tokens and with all that they see."""


NO_LAYERS: dict[str, Any] = {"layers": []} if "layers" in inspect.signature(Cache.__init__).parameters else {}
"""What a cache is made with that keeps its content elsewhere: transformers 5 wants to be told, 4 takes no arguments."""


def cache_arguments(body: torch.nn.Module, cache: Cache, columns: torch.Tensor) -> dict[str, Any]:
    """What ``body``, the layers of a transformers model, is called with to write its keys and values to these columns of ``cache``.

    transformers 5 has other names than 4, and asks the cache where it writes.
    """
    takes = _parameters(type(body))
    found: dict[str, Any] = {"use_cache": True, "cache" if "cache" in takes else "past_key_values": cache}
    return {**found, "cache_position": columns} if "cache_position" in takes else found


@functools.cache
def _parameters(body: type[torch.nn.Module]) -> frozenset[str]:
    return frozenset(inspect.signature(body.forward).parameters)


class RowCache(Cache):
    """Keys and values of a batch of rows that share columns but not content.

    ``visible`` [rows, columns] is the attention mask of each row: the other columns are padding, rolled back, or belong to other rows.
    A row's columns are in time order and its positions are its own (the caller gives them), so rows of any length share a batch.
    """

    def __init__(self, rows: int, columns: int = 0) -> None:
        """``columns``: as many as it will have, as far as that is known."""
        super().__init__(**NO_LAYERS)
        self._columns = columns
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.visible = torch.zeros(rows, 0, dtype=torch.bool)
        self.length = 0
        """Columns in use."""
        self.start = 0
        """The first column of the block that the current or last forward writes."""
        self.active: torch.Tensor | None = None
        """The rows of the current forward; None: all."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.visible.shape[0]

    def get_seq_length(self, layer_idx: int | None = 0) -> int:  # noqa: ARG002  transformers' signature
        """Columns in use (what transformers calls it)."""
        return self.length

    def get_max_cache_shape(self) -> int | None:
        """No limit."""
        return None

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_more: Any,
        **_named: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a block at ``start`` and return everything so far, of the active rows."""
        end = self.start + key_states.shape[2]
        if layer_idx == len(self.keys):
            shape = (self.rows, key_states.shape[1], max(end, self._columns) + _GROW, key_states.shape[3])
            self.keys.append(key_states.new_zeros(shape))
            self.values.append(value_states.new_zeros(shape))
        elif self.keys[layer_idx].shape[2] < end:
            for tensors in (self.keys, self.values):
                tensors[layer_idx] = _with_room(tensors[layer_idx][: self.rows, :, : self.length], end + _GROW)
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        if self.active is None:
            keys[: self.rows, :, self.start : end] = key_states
            values[: self.rows, :, self.start : end] = value_states
            return keys[: self.rows, :, :end], values[: self.rows, :, :end]
        keys[self.active, :, self.start : end] = key_states
        values[self.active, :, self.start : end] = value_states
        return keys[self.active, :, :end], values[self.active, :, :end]

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order, repetitions allowed. Leading columns that no row sees are dropped when there are many."""
        seen = self.visible[list(rows)].any(dim=0).nonzero()
        start = int(seen[0]) if len(seen) else self.length
        self.take(rows, 0 if start < _GROW and self._stays(rows) else start)

    def take(self, rows: Sequence[int], start: int) -> None:
        """Keep these rows, from column ``start`` on."""
        stays = not start and self._stays(rows)
        moved = next((i for i, row in enumerate(rows) if i != row), len(rows))
        index = torch.tensor(rows, dtype=torch.long)
        self.visible = self.visible[index][:, start:]
        index = index.to(self.keys[0].device) if self.keys else index
        for tensors in (self.keys, self.values):
            for layer, tensor in enumerate(tensors):  # layer by layer, so that only one is there twice
                if stays:
                    tensor[moved : len(rows), :, : self.length] = tensor[index[moved:], :, : self.length]
                else:
                    tensors[layer] = _with_room(tensor[index, :, start : self.length], self.length - start + _GROW)
        self.length -= start

    def _stays(self, rows: Sequence[int]) -> bool:
        """Whether these rows stay in the buffers that they are in: moved up only, and not so few that memory is to be given back."""
        ascending = all(one < next_one for one, next_one in itertools.pairwise(rows))
        return ascending and bool(self.keys) and self.keys[0].shape[0] <= 2 * len(rows)

    def fill(self, parts: Sequence[Part | None], *, last: bool = True) -> None:
        """Let the rows of this empty cache begin with copies of these parts, in their last columns or in their first ones."""
        self.length = max((len(part.columns) for part in parts if part), default=0)
        self.visible = torch.zeros(self.rows, self.length, dtype=torch.bool)
        copies: dict[tuple[int, int, int], tuple[Part, list[int]]] = {}
        for row, part in enumerate(parts):
            if part:
                copies.setdefault((id(part.cache), part.row, len(part.columns)), (part, []))[1].append(row)
                self.visible[row, self._place(len(part.columns), last=last)] = True
        if copies:
            self.keys, self.values = (self._copied(list(copies.values()), name, last=last) for name in ("keys", "values"))

    def _place(self, columns: int, *, last: bool) -> slice:
        return slice(self.length - columns, self.length) if last else slice(0, columns)

    def _copied(self, copies: Sequence[tuple[Part, list[int]]], name: str, *, last: bool) -> list[torch.Tensor]:
        """The buffers of ``keys`` or ``values`` with each part in the rows that begin with it."""
        sources = [getattr(part.cache, name) for part, _ in copies]
        indices = [torch.tensor(part.columns, device=sources[0][0].device) for part, _ in copies]
        buffers = []
        for layer, like in enumerate(sources[0]):
            buffer = like.new_zeros((self.rows, like.shape[1], max(self.length, self._columns), like.shape[3]))
            for (part, rows), tensors, index in zip(copies, sources, indices, strict=True):
                buffer[rows, :, self._place(len(index), last=last)] = tensors[layer][part.row][:, index]
            buffers.append(buffer)
        return buffers

    def append(self, other: RowCache) -> None:
        """Move the rows of ``other`` below these. The shorter cache is padded on the left."""
        length, rows = max(self.length, other.length), self.rows + other.rows
        fits = length == self.length and bool(self.keys) and rows <= self.keys[0].shape[0]
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            for layer, tensor in enumerate(mine):
                if not fits:
                    mine[layer] = tensor.new_empty((rows, tensor.shape[1], length + _GROW, tensor.shape[3]))
                    _place(mine[layer][: self.rows], tensor[: self.rows], self.length, length)
                _place(mine[layer][self.rows : rows], theirs[layer][: other.rows], other.length, length)
                theirs[layer] = theirs[layer].new_empty(0)
        self.visible = torch.cat([torch.nn.functional.pad(c.visible, (length - c.length, 0)) for c in (self, other)])
        self.length = length


class Part(NamedTuple):
    """Columns of one row of a cache."""

    cache: RowCache
    row: int
    columns: Sequence[int]


def _place(target: torch.Tensor, source: torch.Tensor, used: int, end: int) -> None:
    """Let the first ``used`` columns of ``source`` end at column ``end`` of ``target``.

    The others become zero, not what was in memory: masked weights are 0, and 0 times NaN is NaN.
    """
    target[:, :, : end - used] = 0
    target[:, :, end - used : end] = source[:, :, :used]
    target[:, :, end:] = 0


def _with_room(source: torch.Tensor, columns: int) -> torch.Tensor:
    """A copy of ``source`` that has ``columns``."""
    buffer = source.new_empty((*source.shape[:2], columns, source.shape[3]))
    buffer[:, :, : source.shape[2]] = source
    buffer[:, :, source.shape[2] :] = 0
    return buffer


class Block:
    """New tokens for some rows, right-aligned: shapes [rows, new]."""

    def __init__(self, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> None:
        """``starts`` are the positions of each row's first token."""
        self.widths = [len(row) for row in tokens]
        new = max(self.widths)
        self.tokens = torch.zeros(len(tokens), new, dtype=torch.long)
        self.positions = torch.zeros(len(tokens), new, dtype=torch.long)
        self.visible = torch.zeros(len(tokens), new, dtype=torch.bool)
        for i, (row, start) in enumerate(zip(tokens, starts, strict=True)):
            if not row:
                continue
            self.tokens[i, -len(row) :] = torch.tensor(row, dtype=torch.long)
            self.positions[i, -len(row) :] = torch.arange(start, start + len(row))
            self.visible[i, -len(row) :] = True
        self.inside: torch.Tensor | None = None
        """Mask [rows, new, new] among the new tokens; None if each sees itself and the visible ones before it."""

    def padding(self, row: int) -> int:
        """Columns before the row's first token."""
        return self.tokens.shape[1] - self.widths[row]


def piece_columns(rows: int, columns: int) -> int:
    """Columns of a forward that takes a bounded amount of memory, for rows that see ``columns`` in the end."""
    return max(1, min(PIECE_TOKENS // rows, PIECE_MASK // (rows * columns)))


def pieces(tokens: Sequence[Sequence[int]], starts: Sequence[int], seen: int = 0) -> Iterator[Block]:
    """One block, cut from left to right into blocks whose forwards take a bounded amount of memory.

    Args:
        tokens: Of each row.
        starts: The position of each row's first token.
        seen: Columns that are in the cache already.
    """
    width = max(map(len, tokens))
    most = piece_columns(len(tokens), seen + width)
    for begin in range(0, width, most):
        skipped = [max(0, begin - (width - len(row))) for row in tokens]
        ends = [max(0, begin + most - (width - len(row))) for row in tokens]
        parts = [row[first:last] for row, first, last in zip(tokens, skipped, ends, strict=True)]
        yield Block(parts, [start + first for start, first in zip(starts, skipped, strict=True)])


class BlockModel(Protocol):
    """What runs the layers. Only one thread calls it."""

    max_length: int
    """Tokens that it has positions for."""
    forward_cost: int
    """Fixed cost of one forward, in tokens; decides how much of a label is worth guessing."""

    token_bytes: int
    """Of one token's keys and values, on one device."""

    def cache(self, rows: int, columns: int = 0) -> RowCache:
        """An empty cache for this model, which will have so many columns as far as that is known."""

    def forward(
        self,
        cache: RowCache,
        block: Block,
        active: Sequence[int] | None = None,
        *,
        reads: Sequence[tuple[int, int]] = (),
        tokens: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Append ``block`` to ``cache`` and return the scores at ``reads``: [reads, vocabulary], in fp32, on the CPU.

        ``active`` names the cache rows that the block is for, all of them if None; the others get invisible columns. ``reads`` are
        (row, column) of the block. ``tokens`` limits the scores to these tokens: [reads, tokens].
        """


FORWARD_COST = {"cpu": 40, "cuda": 4000}
"""``forward_cost`` by device type: a GPU is mostly idle during a forward of few tokens."""


@contextlib.contextmanager
def appended(
    cache: RowCache, block: Block, active: Sequence[int] | None, *, dtype: torch.dtype, device: torch.device
) -> Iterator[torch.Tensor]:
    """Gives the additive mask [rows, 1, new, columns] for a forward of ``block``, which belongs to ``cache`` afterwards.

    The block is written behind the last column that an active row sees: what only other rows see there is theirs, and stays.
    """
    index = None if active is None or len(active) == cache.rows else torch.tensor(active)
    visible = cache.visible if index is None else cache.visible[index]
    seen = visible.any(dim=0).nonzero()
    cache.start = int(seen[-1]) + 1 if len(seen) else 0
    cache.active = None if index is None else index.to(device)
    yield _mask(visible[:, : cache.start], block, dtype).to(device)
    end = cache.start + block.tokens.shape[1]
    if end > cache.length:
        cache.visible = torch.nn.functional.pad(cache.visible, (0, end - cache.length))
        cache.length = end
    cache.visible[slice(None) if index is None else index, cache.start : end] = block.visible
    cache.active = None


def _mask(seen: torch.Tensor, block: Block, dtype: torch.dtype) -> torch.Tensor:
    """The additive mask [rows, 1, new, columns]. Padding sees itself, or its softmax would be empty."""
    rows, new = block.tokens.shape
    inside = block.inside
    if inside is None:
        inside = torch.tril(torch.ones(new, new, dtype=torch.bool)) & block.visible[:, None, :]
    inside = inside | torch.eye(new, dtype=torch.bool)
    allowed = torch.cat([seen[:, None, :].expand(rows, new, -1), inside], dim=2)
    mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)
    return mask[:, None]
