"""Rotary embedding, RMSNorm and SwiGLU as one autograd node each: what TransformerEngine and torch.compile fuse where they are to be had.

Megatron-Core's own are chains of elementwise operations, each of which reads and writes the whole activation and saves it for the backward
pass; a CPU's memory is too slow for that. ``python -m tests.benchmarks.bench_training`` shows what the whole step costs.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer import TransformerConfig
from torch import Tensor
from torch.nn.functional import silu
from torch.utils.weak import WeakTensorKeyDictionary


def rotate(t: Tensor, angles: Tensor, **_options: Any) -> Tensor:
    """Rotary embedding of ``t`` ``[s, b, heads, dim]`` by ``angles`` ``[s, b or 1, 1, rotary dim]``, whose two halves are alike.

    Of a packed micro batch ``t`` is ``[packed, heads, dim]``.

    Takes the place of TransformerEngine's ``fused_apply_rotary_pos_emb``. Dimensions beyond the rotary ones stay as they are. The result
    lies in memory as ``[b, heads, s, dim]``, which is how ``scaled_dot_product_attention`` reads it fastest.
    """
    if t.dim() == 3:
        return rotate(t.unsqueeze(1), angles).squeeze(1)
    factors = _FACTORS.get(angles)
    if factors is None:
        cos, (first, second) = angles.cos(), angles.sin().chunk(2, -1)
        factors = _FACTORS[angles] = cos, torch.cat((-first, second), -1), torch.cat((first, -second), -1)
    rotated: Tensor = _Rotation.apply(t, *factors)
    return rotated


_FACTORS = WeakTensorKeyDictionary()
"""What angles multiply by, to turn and to turn back. They are the same for all layers, and for every batch as long."""


class _Rotation(torch.autograd.Function):
    """A rotation; its gradient is rotated back."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, cos: Tensor, sin: Tensor, back: Tensor) -> Tensor:
        ctx.factors = cos, back
        positions, rows, heads, size = t.shape
        return _rotated(t, cos, sin, t.new_empty(rows, heads, positions, size).permute(2, 0, 1, 3))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return _rotated(gradient, *ctx.factors, torch.empty_like(gradient)), None, None, None


def _rotated(t: Tensor, cos: Tensor, sin: Tensor, result: Tensor) -> Tensor:
    """Write ``t`` times ``cos``, plus ``t`` with its halves exchanged times ``sin``, into ``result``."""
    size = cos.size(-1)
    if size < t.size(-1):
        result[..., size:] = t[..., size:]
        _rotated(t[..., :size], cos, sin, result[..., :size])
        return result
    x, y = t.chunk(2, -1)
    # Not addcmul_, which rounds once instead of twice: logits are to equal those of the Hugging Face model to the last digit.
    return torch.mul(t, cos.to(t.dtype), out=result).add_(torch.cat((y, x), -1).mul_(sin.to(t.dtype)))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer; one with many more features out than in, as a gate and an up projection side by side, in two products.

    A CPU computes half as wide a product at a higher rate, where weight and result come from memory and not out of its cache.
    """
    if bias is None and weight.size(0) > 4 * weight.size(1) and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
        wide: Tensor = _WideLinear.apply(x, weight)
        return wide
    return torch.nn.functional.linear(x, multiplied(weight), bias)


def multiplied(weight: Tensor) -> Tensor:
    """``weight`` in the type that products are computed in. One that is frozen is converted once; autocast would in every forward."""
    if weight.requires_grad or not torch.is_autocast_enabled("cpu"):
        return weight
    converted: Tensor | None = _CONVERTED.get(weight)
    if converted is None:
        converted = _CONVERTED[weight] = weight.to(torch.get_autocast_dtype("cpu"))
    return converted


_CONVERTED = WeakTensorKeyDictionary()
"""Frozen weights in the type of products, for as long as they live."""


def rewrite(weight: Tensor, places: Tensor, rows: Tensor) -> None:
    """Change rows of a frozen weight, and of what it was converted to."""
    for copy in (weight, _CONVERTED.get(weight)):
        if copy is not None:
            copy.data[places] = rows.to(copy.dtype)


class _WideLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        y = x.new_empty(*x.shape[:-1], weight.size(0))
        for part, features in zip(weight.chunk(2), y.flatten(0, -2).chunk(2, -1), strict=True):
            torch.mm(x.flatten(0, -2), part.t(), out=features)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        for_x = (rows @ weight).view_as(x) if ctx.needs_input_grad[0] else None
        for_weight = rows.t() @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return for_x, for_weight


class SwiGLU(torch.autograd.Function):
    """Takes the place of Megatron-Core's ``SwiGLUFunction``, which is compiled."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, *_options: Any) -> Tensor:
        """``silu(gate) * up`` of ``y`` ``[..., 2 * ffn]``, which is gate and up side by side."""
        gate, up = y.chunk(2, -1)
        activated = silu(gate)
        ctx.save_for_backward(y, activated)
        return activated * up

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        """Both halves are written where they belong; autograd would make them apart and join them."""
        y, activated = ctx.saved_tensors
        gate, up = y.chunk(2, -1)
        result = y.new_empty(y.shape)
        for_gate, for_up = result.chunk(2, -1)
        torch.mul(gradient, activated, out=for_up)
        torch.mul(gradient, up, out=for_gate)
        torch.ops.aten.silu_backward.grad_input(for_gate, gate, grad_input=for_gate)
        return result, None, None


class RMSNorm(torch.nn.RMSNorm):
    """``torch.nn.RMSNorm``, whose kernels are fused on GPUs, with a fused gradient on CPUs; built as Megatron-Core builds its norms."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__(hidden_size, eps=eps)
        # Of a part of the sequence this weight's gradient is a part: Megatron-Core and NeMo add up those that are marked so.
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        """``x`` ``[..., hidden]``, each row divided by its root mean square, times the weight."""
        if x.device.type != "cpu" or x.dtype != torch.float32:
            return super().forward(x)
        normalized: Tensor = _RootMeanSquare.apply(x, self.weight, self.eps)
        return normalized


class _RootMeanSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:  # type: ignore[override]
        x, weight, scale = ctx.saved_tensors
        product = gradient * x
        along = (product @ weight).unsqueeze(-1).mul_(scale.square()).div_(-x.size(-1))
        for_x = (gradient * weight).addcmul_(x, along).mul_(scale)
        for_weight = product.flatten(0, -2).T @ scale.flatten() if ctx.needs_input_grad[1] else None
        return for_x, for_weight, None
