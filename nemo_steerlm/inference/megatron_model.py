"""A Megatron model, spread over ranks, that reads blocks of tokens for the loop that batches and scores.

Every rank holds its layers (pipeline) and its heads (tensor) and their part of every cache. Rank 0 runs the loop; each of its forwards
begins with an order that all ranks receive, so that they do the same to their caches and then read the same block.
"""

from __future__ import annotations

import datetime
import logging
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from torch.nn.functional import linear

from nemo_steerlm.inference.blocks import FORWARD_COST, Block, Part, RowCache, appended
from nemo_steerlm.megatron import compat
from nemo_steerlm.megatron.distributed import make_trainer, share_cores
from nemo_steerlm.megatron.gpt_sft import SteerLMGPTSFTModel
from nemo_steerlm.megatron.grouped_attention import grouped_sdpa
from nemo_steerlm.megatron.hf_import import gpt_modules
from nemo_steerlm.megatron.model_config import Parallelism
from nemo_steerlm.megatron.nemo_files import restore_nemo

logger = logging.getLogger(__name__)

_IDLE = datetime.timedelta(days=365)
"""How long a rank waits for an order."""


def load_serving_model(path: Path, layout: Parallelism, *, nodes: int, failed: Callable[[str], NoReturn]) -> ServingModel:
    """Restore a ``.nemo`` under ``layout``. Every rank calls this. ``failed`` is called on rank 0 when the ranks cannot go on together."""
    compat.activate()
    trainer = make_trainer(devices=layout.world_size // nodes, num_nodes=nodes)
    overrides = {
        "tensor_model_parallel_size": layout.tensor,
        "pipeline_model_parallel_size": layout.pipeline,
        "virtual_pipeline_model_parallel_size": None,
        "sequence_parallel": False,
        "megatron_amp_O2": False,
        "apply_rope_fusion": False,  # rows have positions of their own
    }
    return ServingModel(restore_nemo(path, trainer, overrides), failed)


class CachedAttention(MegatronModule):
    """Core attention of a layer that is served: what it has read so far comes out of a cache, and a mask says who sees what."""

    def __init__(self, config: TransformerConfig, index: int) -> None:
        """``index`` counts the layers of this rank."""
        super().__init__(config=config)
        self.index = index
        self.cache: RowCache | None = None
        """Set for each forward."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **_kwargs: Any) -> Tensor:
        """As ``TorchDotProductAttention``, but ``attention_mask`` ``[b, 1, sq, columns]`` is added to the scores."""
        assert self.cache is not None
        keys, values = self.cache.update(key.permute(1, 2, 0, 3), value.permute(1, 2, 0, 3), self.index)
        context, _ = grouped_sdpa(self, query.permute(1, 2, 0, 3), keys, values, attention_mask, self.config.softmax_scale)
        return context.transpose(0, 1).flatten(2)


class ServingModel:
    """See BlockModel; ``follow`` is what ranks other than 0 do instead."""

    def __init__(self, model: SteerLMGPTSFTModel, failed: Callable[[str], NoReturn]) -> None:
        share_cores()
        self._failed = failed
        (self._gpt,) = gpt_modules(model.eval())
        self.device = next(self._gpt.parameters()).device
        self.dtype = _dtype(str(model.cfg.precision))  # a .nemo is restored in fp32 where there is no CUDA
        self._gpt.to(self.dtype)
        self._cores = [CachedAttention(self._gpt.config, i) for i in range(len(self._gpt.decoder.layers))]
        for layer, core in zip(self._gpt.decoder.layers, self._cores, strict=True):
            layer.self_attention.core_attention = core
        self.max_length = int(model.cfg.encoder_seq_length)
        self.forward_cost = FORWARD_COST[self.device.type]
        config = self._gpt.config
        groups = config.num_query_groups // parallel_state.get_tensor_model_parallel_world_size()
        self.token_bytes = 2 * len(self._cores) * groups * config.kv_channels * self.dtype.itemsize
        # Rotary angles [positions, dim]; the module's own come for rows that all begin at 0.
        self._angles = self._gpt.rotary_pos_emb(self.max_length)[:, 0, 0].to(self.device)
        self._rank, self._ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self._orders: list[tuple[Any, ...]] = []
        """What to do to caches before the next block is read."""
        self._control = torch.distributed.new_group(backend="gloo", timeout=_IDLE) if self._ranks > 1 else None
        self._caches: dict[int, RowCache] = {}
        self._made = 0

    def cache(self, rows: int, columns: int = 0) -> RowCache:
        """See BlockModel."""
        if self._control is None:
            return RowCache(rows, columns)
        self._made += 1
        return _OrderedCache(self._made, rows, columns, self._orders)

    @torch.inference_mode()
    def forward(
        self,
        cache: RowCache,
        block: Block,
        active: Sequence[int] | None = None,
        *,
        reads: Sequence[tuple[int, int]] = (),
        tokens: Sequence[int] | None = None,
    ) -> Tensor:
        """See BlockModel."""
        if not isinstance(cache, _OrderedCache):
            scores = self._read(cache, block, active, reads, tokens)
            assert scores is not None
            return scores
        try:
            orders = self._orders[:]
            del self._orders[: len(orders)]
            self._broadcast([*orders, ("read", cache.number, cache.visible, block, active, reads, tokens)])
            scores = self._read(cache, block, active, reads, tokens)
            if scores is None:
                scores = torch.empty(len(reads), self._gpt.vocab_size if tokens is None else len(tokens))
                if reads:
                    torch.distributed.recv(scores, src=self._last_stage(), group=self._control)
            return scores
        except Exception as error:
            # The others are somewhere within the forward, and would take the next order for what they wait for.
            logger.exception("rank 0 failed in a forward")
            self._failed(str(error).splitlines()[0])

    @torch.inference_mode()
    def follow(self) -> None:
        """Do what rank 0 orders until it closes."""
        while True:
            orders = self._broadcast(None)
            for name, number, *rest in orders:
                if name == "close":
                    return
                if name == "new":
                    self._caches[number] = RowCache(*rest)
                elif name == "take":
                    self._caches[number].take(*rest)
                elif name == "fill":
                    self._caches[number].fill([part and Part(self._caches[part[0]], *part[1:]) for part in rest[0]], last=rest[1])
                elif name == "append":
                    self._caches[number].append(self._caches[rest[0]])
                elif name == "forget":
                    del self._caches[number]
                else:
                    visible, block, active, reads, tokens = rest
                    self._caches[number].visible = visible
                    scores = self._read(self._caches[number], block, active, reads, tokens)
                    if scores is not None and reads and self._rank == self._last_stage() != 0:
                        torch.distributed.send(scores, dst=0, group=self._control)

    def close(self) -> None:
        """Tell the other ranks to end."""
        if self._control is not None:
            self._broadcast([("close", 0)])

    def _broadcast(self, orders: list[tuple[Any, ...]] | None) -> list[tuple[Any, ...]]:
        message = [orders]
        torch.distributed.broadcast_object_list(message, src=0, group=self._control, device=torch.device("cpu"))
        assert message[0] is not None
        return message[0]

    @staticmethod
    def _last_stage() -> int:
        """The rank that has all scores and tells them to rank 0: the first of the last pipeline stage's tensor-parallel ranks."""
        pipeline: int = parallel_state.get_pipeline_model_parallel_world_size()
        tensor: int = parallel_state.get_tensor_model_parallel_world_size()
        return (pipeline - 1) * tensor

    def _read(
        self, cache: RowCache, block: Block, active: Sequence[int] | None, reads: Sequence[tuple[int, int]], tokens: Sequence[int] | None
    ) -> Tensor | None:
        """This rank's part of a forward. The scores, on the last pipeline stage."""
        gpt = self._gpt
        positions = block.positions.to(self.device)
        if gpt.pre_process:
            hidden = gpt.embedding(input_ids=block.tokens.to(self.device), position_ids=positions)
        else:
            hidden = torch.empty(*block.tokens.T.shape, gpt.config.hidden_size, dtype=self.dtype, device=self.device)
            torch.distributed.recv(hidden, src=parallel_state.get_pipeline_model_parallel_prev_rank())
            gpt.set_input_tensor(hidden)
        for core in self._cores:
            core.cache = cache
        with appended(cache, block, active, dtype=self.dtype, device=self.device) as mask:
            angles = self._angles[positions.T].unsqueeze(2)  # [new, rows, 1, dim]
            hidden = gpt.decoder(hidden_states=hidden, attention_mask=mask, rotary_pos_emb=angles)
        if not gpt.post_process:
            torch.distributed.send(hidden, dst=parallel_state.get_pipeline_model_parallel_next_rank())
            return None
        where = torch.tensor(reads, dtype=torch.long, device=self.device).reshape(-1, 2)
        return self._scores(hidden[where[:, 1], where[:, 0]], tokens).float().cpu()

    def _scores(self, hidden: Tensor, tokens: Sequence[int] | None) -> Tensor:
        """Logits [reads, vocabulary or tokens] of the last hidden states [reads, hidden], whole on every tensor-parallel rank."""
        gpt = self._gpt
        weight = gpt.shared_embedding_or_output_weight() if gpt.share_embeddings_and_output_weights else gpt.output_layer.weight
        if tokens is None:
            return gather_from_tensor_model_parallel_region(linear(hidden, weight))
        part = weight.size(0)
        local = torch.tensor(tokens, device=self.device) - part * parallel_state.get_tensor_model_parallel_rank()
        here = (local >= 0) & (local < part)
        scores = linear(hidden, weight[local.clamp(0, part - 1)]).masked_fill_(~here, 0.0)
        if parallel_state.get_tensor_model_parallel_world_size() > 1:
            torch.distributed.all_reduce(scores, group=parallel_state.get_tensor_model_parallel_group())
        return scores


class _OrderedCache(RowCache):
    """Rank 0's part of a cache; what is done to it is done to the other ranks' before the next block is read."""

    def __init__(self, number: int, rows: int, columns: int, orders: list[tuple[Any, ...]]) -> None:
        super().__init__(rows, columns)
        self.number = number
        self._orders = orders
        orders.append(("new", number, rows, columns))
        weakref.finalize(self, orders.append, ("forget", number))

    def take(self, rows: Sequence[int], start: int) -> None:
        super().take(rows, start)
        self._orders.append(("take", self.number, list(rows), start))

    def fill(self, parts: Sequence[Part | None], *, last: bool = True) -> None:
        super().fill(parts, last=last)
        told = [part and (cast("_OrderedCache", part.cache).number, part.row, list(part.columns)) for part in parts]
        self._orders.append(("fill", self.number, told, last))

    def append(self, other: RowCache) -> None:
        super().append(other)
        assert isinstance(other, _OrderedCache)
        self._orders.append(("append", self.number, other.number))


def _dtype(precision: str) -> torch.dtype:
    name = precision.removesuffix("-mixed")
    return {"bf16": torch.bfloat16, "16": torch.float16}.get(name, torch.float32)
