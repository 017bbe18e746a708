"""Micro batches without padding, in which the tokens that all rows begin with are there once.

SteerLM's records are short next to what they have in common: system prompt, roles and attribute names open every one of them. Causal
attention lets no token see a later one, so what the layers compute for a common beginning is the same in every row. Outside of core
attention a packed micro batch is one row ``[packed, 1, h]``; core attention alone sees ``[b, s]``. Losses and gradients are those of the
padded batch.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor

MULTIPLE_OF_ROWS = 16
"""The same for GPUs' tensor cores."""
MULTIPLE_OF = 8
"""Packed lengths are rounded up: a CPU's matrix products in bf16 are compiled for each length that comes up."""

WORTHWHILE = 0.9
"""Of a batch's positions a packing may keep no more than this. What it spares has to pay for spreading keys and values out again."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Where the tokens of a padded micro batch ``[b, s]`` lie in the packed one.

    Megatron-Core hands it from layer to layer in the place of its own ``PackedSeqParams``, whose fields it reads are the last ones.
    """

    kept: Tensor
    """``[packed]``: index into the flattened ``[b, s]`` of what each packed token stands for; what rounds the length up repeats index 0."""
    place: Tensor
    """``[b, s]``: packed token of each position; of padding any, nobody reads it."""
    tokens: int
    """Packed tokens without those that round the length up."""
    shared: int
    """Tokens that all rows begin with."""
    max_seqlen_q: int
    max_seqlen_kv: int
    qkv_format: Literal["thd"] | None = None
    """``thd``: rows lie one after the other, each whole, as TransformerEngine's attention wants them."""
    cu_seqlens_q: Tensor | None = None
    """``[rows + 1]``: where each of them starts, and the end. What rounds the length up is a row of its own."""
    cu_seqlens_kv: Tensor | None = None
    cu_seqlens_q_padded: None = None
    cu_seqlens_kv_padded: None = None

    @classmethod
    def of(cls, tokens: Tensor, lengths: list[int]) -> Packing | None:
        """For ``tokens`` ``[b, s]``, of whose rows the first ``len(lengths)`` have as many tokens as ``lengths`` says, the others none.

        None where packing is not worthwhile.
        """
        rows, width = tokens.shape
        common = min(lengths)
        differs = (tokens[: len(lengths), :common] != tokens[0, :common]).any(0).nonzero()
        shared = int(differs[0]) if len(differs) else common
        own = torch.arange(width).expand(len(lengths), -1) < torch.tensor(lengths).unsqueeze(1)
        own[1:, :shared] = False
        flat = own.flatten().nonzero().squeeze(1)
        if len(flat) > WORTHWHILE * tokens.numel():
            return None
        place = torch.zeros(rows, width, dtype=torch.long)
        place.view(-1)[flat] = torch.arange(len(flat))
        place[:, :shared] = torch.arange(shared)
        kept = torch.cat((flat, flat.new_zeros(-len(flat) % MULTIPLE_OF)))
        return cls(kept=kept, place=place, tokens=len(flat), shared=shared, max_seqlen_q=width, max_seqlen_kv=width)

    @classmethod
    def of_rows(cls, tokens: Tensor, lengths: list[int]) -> Packing | None:
        """Like ``of``, for attention that reads packed rows by itself: only padding goes."""
        rows, width = tokens.shape
        own = torch.arange(width).expand(len(lengths), -1) < torch.tensor(lengths).unsqueeze(1)
        flat = own.flatten().nonzero().squeeze(1)
        if len(flat) > WORTHWHILE * tokens.numel():
            return None
        place = torch.zeros(rows, width, dtype=torch.long)
        place.view(-1)[flat] = torch.arange(len(flat))
        extra = -len(flat) % MULTIPLE_OF_ROWS
        ends = torch.tensor([0, *lengths, *([extra] if extra else [])]).cumsum(0).to(torch.int32)
        longest = max(*lengths, extra)
        return cls(
            kept=torch.cat((flat, flat.new_zeros(extra))),
            place=place,
            tokens=len(flat),
            shared=0,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
            qkv_format="thd",
            cu_seqlens_q=ends,
            cu_seqlens_kv=ends,
        )

    def cuda(self) -> Packing:
        """On this process's device."""
        tensors = {name: getattr(self, name) for name in ("kept", "place", "cu_seqlens_q", "cu_seqlens_kv")}
        moved = {name: tensor.cuda(non_blocking=True) for name, tensor in tensors.items() if tensor is not None}
        return dataclasses.replace(self, **moved)

    def pack(self, padded: Tensor) -> Tensor:
        """``[packed, ...]`` of ``[b, s, ...]``."""
        packed: Tensor = _Pack.apply(padded, self)
        return packed

    def unpack(self, packed: Tensor) -> Tensor:
        """``[b, heads, s, dim]`` of ``[packed, heads, dim]``."""
        padded: Tensor = _Unpack.apply(packed, self)
        return padded


class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, padded: Tensor, packing: Packing) -> Tensor:
        ctx.packing, ctx.shape = packing, padded.shape
        return padded.flatten(0, 1).index_select(0, packing.kept)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """What no packed token stands for has no part in the loss."""
        tokens = ctx.packing.tokens
        result = gradient.new_zeros(ctx.shape)
        result.flatten(0, 1).index_copy_(0, ctx.packing.kept[:tokens], gradient[:tokens])
        return result, None


class _Unpack(torch.autograd.Function):
    """Not by ``index_select`` alone, whose gradient adds row by row: only a common beginning has anything to add up."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        # By heads, as ``fused.rotate`` leaves them, and as attention reads them fastest.
        heads = packed.transpose(0, 1).index_select(1, packing.place.flatten())
        return heads.unflatten(1, packing.place.shape).transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """``gradient`` ``[b, heads, s, dim]`` is zero where there is padding: no row's loss depends on it."""
        packing = ctx.packing
        heads = gradient.transpose(0, 1)  # [heads, b, s, dim]
        result = heads.flatten(1, 2).index_select(1, packing.kept)
        result[:, packing.tokens :] = 0
        result[:, : packing.shared] += heads[:, 1:, : packing.shared].sum(1)
        return result.transpose(0, 1), None
