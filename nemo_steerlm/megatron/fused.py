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


def rotate(t: Tensor, angles: Tensor, **_options: Any) -> Tensor:
    """Rotary embedding of ``t`` ``[s, b, heads, dim]`` by ``angles`` ``[s, b or 1, 1, rotary dim]``, whose two halves are alike.

    Takes the place of TransformerEngine's ``fused_apply_rotary_pos_emb``. Dimensions beyond the rotary ones stay as they are. The result
    lies in memory as ``[b, heads, s, dim]``, which is how ``scaled_dot_product_attention`` reads it fastest.
    """
    half = angles[..., : angles.size(-1) // 2]
    rotated: Tensor = _Rotation.apply(t, half.cos().to(t.dtype), half.sin().to(t.dtype))
    return rotated


class _Rotation(torch.autograd.Function):
    """A rotation; its gradient is rotated back."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        positions, rows, heads, size = t.shape
        return _rotated(t, cos, sin, t.new_empty(rows, heads, positions, size).permute(2, 0, 1, 3))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _rotated(gradient, cos, -sin, gradient.new_empty(gradient.shape)), None, None


def _rotated(t: Tensor, cos: Tensor, sin: Tensor, result: Tensor) -> Tensor:
    half = cos.size(-1)
    x, y, rest = t[..., :half], t[..., half : 2 * half], t[..., 2 * half :]
    # Not addcmul_, which rounds once instead of twice: logits are to equal those of the Hugging Face model to the last digit.
    torch.mul(x, cos, out=result[..., :half]).sub_(y * sin)
    torch.mul(y, cos, out=result[..., half : 2 * half]).add_(x * sin)
    if rest.size(-1):
        result[..., 2 * half :] = rest
    return result


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
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=for_gate)
        return result, None, None


class RMSNorm(torch.nn.RMSNorm):
    """``torch.nn.RMSNorm``, whose kernels are fused on GPUs, with a fused gradient on CPUs; built as Megatron-Core builds its norms."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        assert not config.sequence_parallel, "the gradient of this norm's weight is that of a whole sequence"
        super().__init__(hidden_size, eps=eps)

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
        unit = x * scale
        product = gradient * unit
        along = (product @ weight).unsqueeze(-1).div_(-x.size(-1))
        for_x = (gradient * weight).addcmul_(unit, along).mul_(scale)
        for_weight = product.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return for_x, for_weight, None
