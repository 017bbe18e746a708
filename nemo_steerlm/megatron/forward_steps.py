"""One micro batch forward through the model, and its loss: the steps that Megatron's pipeline schedule calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from torch import Tensor

from nemo_steerlm.megatron.micro_batch import MicroBatch


def with_bf16_products(step: Callable[..., Any], batches: Iterator[MicroBatch], model: torch.nn.Module) -> Any:
    """``step`` with the matrix products of a CPU in bf16: Megatron's schedule asks for CUDA's autocast only."""
    with torch.autocast("cpu", torch.bfloat16):
        output, loss = step(batches, model)
    # The next pipeline stage waits for a tensor of the weights' type.
    return (output if parallel_state.is_pipeline_last_stage() else output.float()), loss


def summed(losses: Tensor) -> Tensor:
    """The cross entropies ``[learned]`` added up: the loss of both of the paper's objectives."""
    return losses.sum()


def learn_step(
    loss_of: Callable[[Tensor], Tensor], batches: Iterator[MicroBatch], model: torch.nn.Module
) -> tuple[Tensor, Callable[..., Any]]:
    """The next micro batch for training: the model's output, and the function that makes its loss of it.

    That function takes the cross entropies ``[learned]`` of the learned tokens, in nats, and returns what ``loss_of`` makes of them times
    ``loss_scale``, and ``loss_sum`` without it.
    """
    batch = next(batches)
    inputs = _on_device(batch)
    output = model(**inputs, attention_mask=None, labels=batch["labels"].cuda(non_blocking=True))

    def loss(losses: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        total = loss_of(losses.float())
        return total * batch["loss_scale"].to(total.device), {"loss_sum": total.detach()}

    return output, loss


def score_step(batches: Iterator[MicroBatch], model: torch.nn.Module) -> tuple[Tensor, Callable[..., Any]]:
    """The next micro batch for validation: as ``learn_step``, with the logits of value tokens where the batch asks for them.

    The function takes logits ``[learned, vocab / tp]`` and returns the sum of cross entropies, ``loss_sum``, and ``value_logits``
    ``[value_rows, candidates]``.
    """
    batch = next(batches)
    inputs = _on_device(batch)
    output = model(**inputs, attention_mask=None, labels=None)

    def loss(logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        result = {}
        if "value_rows" in batch:
            result["value_logits"] = _candidate_logits(logits, batch["value_rows"], batch["candidates"])
        learned = batch["labels"].cuda(non_blocking=True)[inputs["loss_mask"]]
        total = vocab_parallel_cross_entropy(logits.float().unsqueeze(1), learned.unsqueeze(1)).sum()
        return total.clone(), {"loss_sum": total, **result}  # the schedule divides what it is given in place

    return output, loss


def _on_device(batch: MicroBatch) -> dict[str, Any]:
    names = {"input_ids": "tokens", "position_ids": "position_ids", "loss_mask": "loss_mask"}
    inputs: dict[str, Any] = {argument: batch[name].cuda(non_blocking=True) for argument, name in names.items()}
    return inputs if batch.packing is None else {**inputs, "packed_seq_params": batch.packing.cuda()}


def _candidate_logits(logits: Tensor, rows: Tensor, candidates: Tensor) -> Tensor:
    """Logits ``[rows, candidates]`` of a vocabulary that is spread over the tensor-parallel ranks."""
    part = logits.size(-1)
    local = candidates.to(logits.device) - parallel_state.get_tensor_model_parallel_rank() * part
    here = (local >= 0) & (local < part)
    gathered = logits[rows.to(logits.device)][:, local.clamp(0, part - 1)].float().masked_fill(~here, float("-inf"))
    torch.distributed.all_reduce(gathered, op=torch.distributed.ReduceOp.MAX, group=parallel_state.get_tensor_model_parallel_group())
    return gathered
