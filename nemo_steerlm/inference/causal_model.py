"""A transformers model that reads blocks of tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.formats.checkpoint import check_checkpoint
from nemo_steerlm.inference import smollm3
from nemo_steerlm.inference.blocks import FORWARD_COST, Block, RowCache, appended, cache_arguments
from nemo_steerlm.megatron.cpu import multiplies_in_bf16
from nemo_steerlm.megatron.grouped_attention import grouped_sdpa

_DTYPE = "torch_dtype" if transformers.__version__.startswith("4.") else "dtype"
"""What transformers calls the type of weights."""
_GROUPED = "steerlm_grouped_sdpa"
ALL_ATTENTION_FUNCTIONS[_GROUPED] = grouped_sdpa
smollm3.register()


class CausalModel:
    """A model folder in memory; see BlockModel."""

    def __init__(self, folder: Path, *, device: str | None = None, dtype: torch.dtype | None = None) -> None:
        """Load the model in ``dtype``; by default in that of its weights, and in fp32 on a CPU that does not multiply in bf16.

        Raises:
            UsageError: If transformers cannot load the folder.
        """
        check_checkpoint(folder, values=True)
        config = _config(folder)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if dtype is None:
            dtype = getattr(torch, str(getattr(config, _DTYPE, None) or "float32").removeprefix("torch."))
            if self.device.type == "cpu" and not (dtype == torch.bfloat16 and multiplies_in_bf16()):
                dtype = torch.float32
        try:
            model = AutoModelForCausalLM.from_pretrained(folder, config=config, attn_implementation="sdpa", **{_DTYPE: dtype})
        except (OSError, ValueError) as error:
            raise UsageError(f"{folder}: cannot be loaded ({str(error).splitlines()[0]})") from error
        self.model: Any = model.to(self.device).eval()
        if config.model_type == "llama":
            self.model.config._attn_implementation = _GROUPED  # noqa: SLF001  4.51 has no public way for a loaded model
        self.body: Any = getattr(model, model.base_model_prefix)
        self.head: torch.nn.Linear = model.get_output_embeddings()
        self.dtype = dtype
        self._logits_divisor: float = getattr(config, "logits_scaling", 1.0)
        """Granite's; its class divides by it outside of what is called here."""
        self.max_length = int(config.max_position_embeddings)
        self.forward_cost = FORWARD_COST[self.device.type]
        heads = config.num_attention_heads
        self.kv_heads: int = getattr(config, "num_key_value_heads", None) or heads
        self.head_size: int = getattr(config, "head_dim", None) or config.hidden_size // heads
        self.token_bytes = 2 * config.num_hidden_layers * self.kv_heads * self.head_size * dtype.itemsize

    def cache(self, rows: int, columns: int = 0) -> RowCache:
        """See BlockModel."""
        return RowCache(rows, columns)

    @torch.inference_mode()
    def forward(
        self,
        cache: RowCache,
        block: Block,
        active: Sequence[int] | None = None,
        *,
        reads: Sequence[tuple[int, int]] = (),
        tokens: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """See BlockModel."""
        where = torch.tensor(reads, dtype=torch.long, device=self.device).reshape(-1, 2)
        with appended(cache, block, active, dtype=self.dtype, device=self.device) as mask:
            picked = self._hidden(cache, block, mask, where)
        if self._logits_divisor != 1:
            picked = picked / self._logits_divisor
        if tokens is None:
            return self.head(picked).float().cpu()
        index = torch.tensor(tokens, device=self.device)
        # In fp32: bf16 has three digits, too few to tell close values apart.
        bias = None if self.head.bias is None else self.head.bias[index].float()
        return torch.nn.functional.linear(picked.float(), self.head.weight[index].float(), bias).cpu()

    def _hidden(self, cache: RowCache, block: Block, mask: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """Last hidden states [reads, hidden] at ``where`` [reads, 2], the block's keys and values now in ``cache``."""
        places = torch.arange(cache.start, cache.start + block.tokens.shape[1], device=self.device)
        hidden = self.body(
            input_ids=block.tokens.to(self.device),
            position_ids=block.positions.to(self.device),
            attention_mask=mask,
            **cache_arguments(self.body, cache, places),
        ).last_hidden_state
        return hidden[where[:, 0], where[:, 1]]


def _config(folder: Path) -> Any:
    """The folder's config. transformers 5 writes the rotary base where 4.51 does not look, and 4.51 would silently use 10,000."""
    try:
        config = AutoConfig.from_pretrained(folder)
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder}: no readable config.json ({str(error).splitlines()[0]})") from error
    rope = raw.get("rope_parameters")
    if rope and "rope_theta" not in raw and _DTYPE == "torch_dtype":
        config.rope_theta = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            config.rope_scaling = rope
    return config
