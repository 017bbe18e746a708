"""Attention whose query heads share keys and values, for every model here that attends under a mask."""

from __future__ import annotations

from typing import Any

import torch

_COPIED = 1 << 20
"""Elements of a mask that is copied for each head of a group rather than used in as many calls."""


def grouped_sdpa(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention with grouped keys and values read in place; transformers 4.51 copies them once per query head.

    ``query`` is [rows, heads, new, dim], ``key`` and ``value`` [rows, kv heads, columns, dim], the mask [rows, 1, new, columns].
    The heads of a group become further queries of their one key: [rows, kv heads, group * new, dim]. Under a large mask each head of a
    group is computed by itself instead, since the mask would be copied for each.
    """
    rows, heads, new, dim = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    if attention_mask is not None and new > 1 and group > 1 and group * attention_mask.numel() > _COPIED:
        each = [
            torch.nn.functional.scaled_dot_product_attention(one, key, value, attn_mask=attention_mask, scale=scaling)
            for one in query.reshape(rows, kv_heads, group, new, dim).unbind(2)
        ]
        return torch.stack(each, dim=2).reshape(rows, heads, new, dim).transpose(1, 2), None
    folded = query.reshape(rows, kv_heads, group * new, dim)
    mask = attention_mask
    if mask is not None and new > 1 and group > 1:
        mask = mask.expand(rows, group, new, -1).reshape(rows, 1, group * new, -1)
    out = torch.nn.functional.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(rows, heads, new, dim).transpose(1, 2), None
