"""Micro batches without padding, in which the common prefix of all rows is stored once.

SteerLM's records share a long prefix: system prompt, roles and attribute names. In causal attention a token depends on earlier tokens only,
so the layers compute the same activations for that prefix in every row. A packed micro batch is one row ``[packed, 1, h]``; only core
attention unpacks it to ``[b, s]``. Losses and gradients equal those of the padded batch.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor

MULTIPLE_OF_ROWS = 16
"""As ``MULTIPLE_OF``, for the tensor cores of GPUs."""
MULTIPLE_OF = 8
"""Packed lengths are rounded up to a multiple: on CPUs, bf16 matrix products are compiled anew for every length."""

WORTHWHILE = 0.9
"""Largest share of a batch's positions that packing may keep; above it, unpacking keys and values costs more than padding."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Maps the tokens of a padded micro batch ``[b, s]`` to those of the packed one.

    Megatron-Core passes it from layer to layer in place of its ``PackedSeqParams``. ``max_seqlen_q`` and the fields below it have the names
    that Megatron-Core reads.
    """

    kept: Tensor
    """``[packed]``: index of each packed token in the flattened ``[b, s]``; the tokens that round the length up have index 0."""
    place: Tensor
    """``[b, s]``: index of the packed token of each position; arbitrary for padding, where it is never read."""
    tokens: int
    """Number of packed tokens, without those that round the length up."""
    shared: int
    """Length of the common prefix in tokens."""
    max_seqlen_q: int
    max_seqlen_kv: int
    qkv_format: Literal["thd"] | None = None
    """``thd``: rows are concatenated whole, as TransformerEngine's attention expects; None: the common prefix is stored once."""
    cu_seqlens_q: Tensor | None = None
    """``[rows + 1]``: start of each row, and the end of the last. The tokens that round the length up form a row of their own."""
    cu_seqlens_kv: Tensor | None = None
    cu_seqlens_q_padded: None = None
    cu_seqlens_kv_padded: None = None

    @classmethod
    def of(cls, tokens: Tensor, lengths: list[int]) -> Packing | None:
        """The packing of a padded micro batch, or None if it would save too little.

        Args:
            tokens: Token ids ``[b, s]``.
            lengths: Length in tokens of each of the first rows; rows beyond them are padding.
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
        """As ``of``, for attention that reads concatenated rows (``thd``): only padding is removed."""
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
        """A copy on this process's device."""
        tensors = {name: getattr(self, name) for name in ("kept", "place", "cu_seqlens_q", "cu_seqlens_kv")}
        moved = {name: tensor.cuda(non_blocking=True) for name, tensor in tensors.items() if tensor is not None}
        return dataclasses.replace(self, **moved)

    def pack(self, padded: Tensor) -> Tensor:
        """From padded ``[b, s, ...]`` to ``[packed, ...]``."""
        packed: Tensor = _Pack.apply(padded, self)
        return packed

    def unpack(self, packed: Tensor) -> Tensor:
        """From packed ``[packed, heads, dim]`` to ``[b, heads, s, dim]``."""
        padded: Tensor = _Unpack.apply(packed, self)
        return padded


class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, padded: Tensor, packing: Packing) -> Tensor:
        ctx.packing, ctx.shape = packing, padded.shape
        return padded.flatten(0, 1).index_select(0, packing.kept)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """Positions without a packed token are padding: their gradient is zero."""
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
