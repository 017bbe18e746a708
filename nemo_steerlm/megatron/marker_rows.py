"""The embedding rows of the chat tokens, learned beside adapters that leave the embedding frozen.

Rows of tokens that were added to a vocabulary are random. What is learned is a copy of them in fp32, which is written into the frozen
matrices after each step: forward passes are those of an ordinary model under every layout, and only three rows' gradients are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor

from nemo_steerlm.megatron import fused


class MarkerRows(torch.nn.Module):
    """Of one pipeline stage. ``input`` are rows of the embedding, ``output`` those of the output layer: equal where the two are tied."""

    def __init__(self, gpt: Any, tokens: Sequence[int]) -> None:
        super().__init__()
        self.tied = bool(gpt.share_embeddings_and_output_weights)
        self.register_buffer("tokens", torch.tensor(tokens), persistent=False)
        self._parts: dict[str, Tensor] = {}
        """The frozen matrix behind each parameter, this rank's rows of it."""
        self._hooks: list[Any] = []
        if gpt.pre_process:
            self._adopt("input", gpt.embedding.word_embeddings.weight)
            self._hooks.append(gpt.embedding.word_embeddings.register_forward_hook(self._after_embedding))
        if gpt.post_process:
            weight = gpt.shared_embedding_or_output_weight() if self.tied else gpt.output_layer.weight
            self._adopt("output", weight)
            self._hooks.append(gpt.output_layer.register_forward_hook(self._after_output))
        if self.tied and gpt.post_process:
            self.output.shared = True  # counted once in the gradients' norm

    def _adopt(self, name: str, weight: Tensor) -> None:
        self._parts[name] = weight
        rows = torch.zeros(len(self.tokens), weight.size(1), dtype=torch.float32, device=weight.device)
        here, places = self._places(weight)
        rows[here] = weight.detach()[places].float()
        torch.distributed.all_reduce(rows, group=parallel_state.get_tensor_model_parallel_group())
        self.register_parameter(name, torch.nn.Parameter(rows))

    def _places(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the tokens this tensor-parallel rank has, and in which of its rows."""
        local = self.tokens.to(weight.device) - weight.size(0) * parallel_state.get_tensor_model_parallel_rank()
        here = (local >= 0) & (local < weight.size(0))
        return here, local[here]

    def write(self) -> None:
        """Put the learned rows where the model reads them."""
        with torch.no_grad():
            for name, weight in self._parts.items():
                here, places = self._places(weight)
                fused.rewrite(weight, places, getattr(self, name)[here])

    def remove(self) -> None:
        """Leave the model as it was but for the rows."""
        for hook in self._hooks:
            hook.remove()

    def reduce(self) -> None:
        """Bring this stage's gradients together over the ranks that share the model. Every rank calls this."""
        gradients = {name: parameter.grad for name, parameter in self.named_parameters()}
        for name, gradient in gradients.items():
            if gradient is None:
                gradients[name] = getattr(self, name).grad = torch.zeros_like(getattr(self, name))
            torch.distributed.all_reduce(gradients[name], group=parallel_state.get_tensor_model_parallel_group())
        if not self.tied or not gradients:
            return
        total = torch.stack(list(gradients.values())).sum(0)
        if parallel_state.get_pipeline_model_parallel_world_size() > 1:
            torch.distributed.all_reduce(total, group=parallel_state.get_embedding_group())
        for gradient in gradients.values():
            gradient.copy_(total)

    def _after_embedding(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """``output`` is ``[b, s, h]``, or with sequence parallelism this rank's ``[s / tp, b, h]``."""
        ids, size = inputs[0], parallel_state.get_tensor_model_parallel_world_size()
        if module.reduce_scatter_embeddings and size > 1:
            part = ids.T.chunk(size)[parallel_state.get_tensor_model_parallel_rank()]
            return _Tap.apply(output, self.input, part, self.tokens, 1.0)
        # Every rank has the whole gradient; ``reduce`` adds them up.
        return _Tap.apply(output, self.input, ids, self.tokens, 1.0 / size)

    def _after_output(self, module: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Any]) -> None:
        """A row of the output layer has the gradient of its column of logits. A hook sees that also where a loss changes them in place."""
        if not output[0].requires_grad:
            return
        hidden = inputs[0].detach()
        if module.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden)
        here, places = self._places(self._parts["output"])

        def add(gradient: Tensor) -> None:
            own = torch.zeros_like(self.output)
            own[here] = gradient[..., places].flatten(0, -2).T.float() @ hidden.flatten(0, -2).float()
            self.output.grad = own if self.output.grad is None else self.output.grad + own

        output[0].register_hook(add)


class _Tap(torch.autograd.Function):
    """The embedding's output as it is; its gradient where a marker stands belongs to the marker's row as well."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, rows: Tensor, ids: Tensor, tokens: Tensor, share: float) -> Tensor:
        ctx.save_for_backward(rows, ids, tokens)
        ctx.share = share
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # type: ignore[override]
        rows, ids, tokens = ctx.saved_tensors
        own = torch.stack([gradient[ids == token].float().sum(0) for token in tokens.to(ids.device)])
        return gradient, (own * ctx.share).to(rows.dtype), None, None, None
