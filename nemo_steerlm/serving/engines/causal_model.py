"""A transformers model with a KV cache of independent rows, which is what scoring and continuous batching are made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from nemo_steerlm.core.errors import UsageError

_GROW = 64
"""Columns a cache grows by at least."""

_GROUPED = "steerlm_grouped_sdpa"


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
    The heads of a group become further queries of their one key: [rows, kv heads, group * new, dim].
    """
    rows, heads, new, dim = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    folded = query.reshape(rows, kv_heads, group * new, dim)
    mask = attention_mask
    if mask is not None and new > 1 and group > 1:
        mask = mask.expand(rows, group, new, -1).reshape(rows, 1, group * new, -1)
    out = torch.nn.functional.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(rows, heads, new, dim).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS[_GROUPED] = grouped_sdpa


class RowCache(Cache):
    """Keys and values of a batch of rows that share columns but not content.

    ``visible`` [rows, columns] says which columns a row may look at; the others are padding or were taken back. Column order is
    time order, positions are each row's own (the caller gives them), so rows of any lengths sit side by side.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.visible = torch.zeros(rows, 0, dtype=torch.bool)
        self.length = 0
        self.active: torch.Tensor | None = None
        """The rows that the forward under way is for; None: all."""

    @property
    def rows(self) -> int:
        """How many rows there are."""
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
        cache_kwargs: Any = None,  # noqa: ARG002  as above
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a block behind the columns in use and return everything so far, of the active rows."""
        end = self.length + key_states.shape[2]
        if layer_idx == len(self.keys):
            shape = (self.rows, key_states.shape[1], end + _GROW, key_states.shape[3])
            self.keys.append(key_states.new_zeros(shape))
            self.values.append(value_states.new_zeros(shape))
        elif self.keys[layer_idx].shape[2] < end:
            self.keys[layer_idx] = _grown(self.keys[layer_idx], self.length, end + _GROW)
            self.values[layer_idx] = _grown(self.values[layer_idx], self.length, end + _GROW)
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        if self.active is None:
            keys[:, :, self.length : end] = key_states
            values[:, :, self.length : end] = value_states
            return keys[:, :, :end], values[:, :, :end]
        keys[self.active, :, self.length : end] = key_states
        values[self.active, :, self.length : end] = value_states
        return keys[self.active, :, :end], values[self.active, :, :end]

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be named more than once. Columns nobody sees any more are dropped."""
        index = torch.tensor(rows, dtype=torch.long)
        visible = self.visible[index]
        seen = visible.any(dim=0).nonzero()
        start = int(seen[0]) if len(seen) else self.length
        index = index.to(self.keys[0].device) if self.keys else index
        self.keys = [k[index, :, start : self.length] for k in self.keys]
        self.values = [v[index, :, start : self.length] for v in self.values]
        self.visible = visible[:, start:]
        self.length -= start

    def append(self, other: RowCache) -> None:
        """Add the rows of ``other`` below. The shorter cache is padded on the left."""
        length = max(self.length, other.length)
        self.keys = [_stacked(a, self.length, b, other.length) for a, b in zip(self.keys, other.keys, strict=True)]
        self.values = [_stacked(a, self.length, b, other.length) for a, b in zip(self.values, other.values, strict=True)]
        self.visible = torch.cat([torch.nn.functional.pad(c.visible, (length - c.length, 0)) for c in (self, other)])
        self.length = length


def _grown(buffer: torch.Tensor, used: int, columns: int) -> torch.Tensor:
    grown = buffer.new_zeros((*buffer.shape[:2], columns, buffer.shape[3]))
    grown[:, :, :used] = buffer[:, :, :used]
    return grown


def _stacked(first: torch.Tensor, first_used: int, second: torch.Tensor, second_used: int) -> torch.Tensor:
    length = max(first_used, second_used)
    rows = first.shape[0] + second.shape[0]
    # Zeros, not garbage: a masked weight is 0, and 0 times NaN is NaN.
    stacked = first.new_zeros((rows, first.shape[1], length + _GROW, first.shape[3]))
    stacked[: first.shape[0], :, length - first_used : length] = first[:, :, :first_used]
    stacked[first.shape[0] :, :, length - second_used : length] = second[:, :, :second_used]
    return stacked


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
        """[rows, new, new]: which new tokens see which, where that is not simply the earlier visible ones and themselves."""

    def padding(self, row: int) -> int:
        """Columns before the row's first token."""
        return self.tokens.shape[1] - self.widths[row]


class CausalModel:
    """A model folder in memory."""

    def __init__(self, folder: Path, *, device: str | None = None) -> None:
        config = _config(folder)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        # fp32 on CPU: bfloat16 is 5 to 7 times slower there without AVX-512.
        dtype = torch.float32 if self.device.type == "cpu" else getattr(torch, str(config.torch_dtype or "float32").removeprefix("torch."))
        try:
            model = AutoModelForCausalLM.from_pretrained(folder, config=config, torch_dtype=dtype, attn_implementation="sdpa")
        except (OSError, ValueError) as error:
            raise UsageError(f"{folder}: cannot be loaded ({str(error).splitlines()[0]})") from error
        self.model: Any = model.to(self.device).eval()
        if config.model_type == "llama":
            self.model.config._attn_implementation = _GROUPED  # noqa: SLF001  4.51 has no public way for a loaded model
        self.body: Any = getattr(model, model.base_model_prefix)
        self.head: torch.nn.Linear = model.get_output_embeddings()
        self.dtype = dtype
        self.max_length = int(config.max_position_embeddings)

    @torch.inference_mode()
    def forward(self, cache: RowCache, block: Block, active: Sequence[int] | None = None) -> torch.Tensor:
        """Last hidden states [rows, new, hidden] of ``block``, which is appended to ``cache``.

        ``active`` names the cache rows that the block is for, all of them if None; the others get invisible columns.
        """
        index = None if active is None or len(active) == cache.rows else torch.tensor(active)
        cache.active = None if index is None else index.to(self.device)
        seen = cache.visible if index is None else cache.visible[index]
        new = block.tokens.shape[1]
        hidden = self.body(
            input_ids=block.tokens.to(self.device),
            position_ids=block.positions.to(self.device),
            attention_mask=self._mask(seen, block),
            past_key_values=cache,
            cache_position=torch.arange(cache.length, cache.length + new, device=self.device),
            use_cache=True,
        ).last_hidden_state
        if index is None:
            added = block.visible
        else:
            added = torch.zeros(cache.rows, new, dtype=torch.bool)
            added[index] = block.visible
        cache.visible = torch.cat([cache.visible, added], dim=1)
        cache.length += new
        cache.active = None
        return hidden

    def _mask(self, seen: torch.Tensor, block: Block) -> torch.Tensor:
        """Additive mask [rows, 1, new, columns]. Padding looks at itself, or its softmax would be empty."""
        rows, new = block.tokens.shape
        inside = block.inside
        if inside is None:
            inside = torch.tril(torch.ones(new, new, dtype=torch.bool)) & block.visible[:, None, :]
        inside = inside | torch.eye(new, dtype=torch.bool)
        allowed = torch.cat([seen[:, None, :].expand(rows, new, -1), inside], dim=2)
        mask = torch.zeros(allowed.shape, dtype=self.dtype).masked_fill_(~allowed, torch.finfo(self.dtype).min)
        return mask[:, None].to(self.device)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """Scores [..., vocabulary] in fp32, or of ``tokens`` only."""
        if tokens is None:
            return self.head(hidden).float()
        weight = self.head.weight[tokens]
        bias = None if self.head.bias is None else self.head.bias[tokens]
        return torch.nn.functional.linear(hidden, weight, bias).float()


def _config(folder: Path) -> Any:
    """The folder's config, with what transformers 5 writes in a place where 4.51 does not look (it would silently use 10,000)."""
    try:
        config = AutoConfig.from_pretrained(folder)
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder}: no readable config.json ({str(error).splitlines()[0]})") from error
    rope = raw.get("rope_parameters")
    if rope and "rope_theta" not in raw:
        config.rope_theta = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            config.rope_scaling = rope
    return config
