"""Layers that Megatron-Core lacks outside of TransformerEngine: fused core attention, and a loss on learned positions only."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.utils import divide
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from nemo_steerlm.formats.families.base import Family
from nemo_steerlm.megatron.fused import RMSNorm
from nemo_steerlm.megatron.packing import Packing


class TorchDotProductAttention(MegatronModule):
    """Core attention on ``scaled_dot_product_attention``; takes the place of Megatron-Core's unfused ``DotProductAttention``.

    Causal masks are never materialised. Grouped keys and values are read in place on CPUs, and repeated for their queries on GPUs.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,  # noqa: ARG002 - Megatron's constructor signature
        attn_mask_type: AttnMaskType,
        attention_type: str,  # noqa: ARG002
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        **_kwargs: Any,
    ) -> None:
        super().__init__(config=config)
        self.attn_mask_type = attn_mask_type
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Packing | None = None,
    ) -> Tensor:
        """Attention output ``[sq, b, np * hn]`` of query ``[sq, b, np, hn]``, key and value ``[sk, b, ng, hn]``.

        Of a packed micro batch ``[packed, 1, np * hn]`` of ``[packed, np, hn]`` and ``[packed, ng, hn]``.

        ``attention_mask`` is True where a key is hidden, as everywhere in Megatron-Core; a causal mask type makes it superfluous.
        """
        assert attention_bias is None, "this project biases no attention"
        kind = attn_mask_type or self.attn_mask_type
        if packed_seq_params is not None:
            query, key, value = (packed_seq_params.unpack(t) for t in (query, key, value))
            context = self._attend(query, key, value, *self._mask(kind, attention_mask, query.size(2), key.size(2), query.device))
            return packed_seq_params.pack(context.transpose(1, 2)).flatten(1).unsqueeze(1)
        mask = self._mask(kind, attention_mask, query.size(0), key.size(0), query.device)
        context = self._attend(*(t.permute(1, 2, 0, 3) for t in (query, key, value)), *mask)
        return context.permute(2, 0, 1, 3).flatten(2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, causal: bool) -> Tensor:
        """``[b, np, sq, hn]`` of query ``[b, np, sq, hn]``, key and value ``[b, ng, sk, hn]``."""
        groups, kind = query.size(1) // key.size(1), query.dtype
        on_cpu = query.device.type == "cpu"
        if on_cpu:  # whose kernels for it are slower in bf16, the backward one by far
            query, key, value = query.float(), key.float(), value.float()
        elif groups > 1:  # not all of a GPU's kernels read grouped keys and values where they are
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        dropout = self.dropout if self.training else 0.0
        # Each tensor-parallel rank has other heads and drops other places; where the sequence is shared, the whole block does already.
        forked = dropout and not self.config.sequence_parallel
        with torch.autocast("cpu", enabled=False), get_cuda_rng_tracker().fork() if forked else contextlib.nullcontext():
            context: Tensor = scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=visible,
                dropout_p=dropout,
                is_causal=causal,
                scale=self.softmax_scale,
                enable_gqa=on_cpu and groups > 1,
            )
        return context.to(kind)

    @staticmethod
    def _mask(kind: AttnMaskType, hidden: Tensor | None, queries: int, keys: int, device: torch.device) -> tuple[Tensor | None, bool]:
        """What ``scaled_dot_product_attention`` takes: a mask that is True where a key is visible, or that it is causal."""
        if kind == AttnMaskType.causal and queries == keys:
            return None, True
        if kind == AttnMaskType.causal and queries > 1:
            return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries), False
        if kind in (AttnMaskType.no_mask, AttnMaskType.causal) or hidden is None:
            return None, False
        return ~hidden, False


class _QueryNorm(RMSNorm):
    """Over all heads at once: one for each token, not one for each of its heads."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__(config, self.heads(config) * hidden_size, eps)

    @staticmethod
    def heads(config: TransformerConfig) -> int:
        """How many."""
        return config.num_attention_heads

    def forward(self, x: Tensor) -> Tensor:
        """``x`` ``[..., heads, hn]``."""
        return super().forward(x.flatten(-2)).view(x.shape)


class _KeyNorm(_QueryNorm):
    @staticmethod
    def heads(config: TransformerConfig) -> int:
        return config.num_query_groups


def local_block_spec(config: TransformerConfig, family: Family) -> TransformerBlockSubmodules:
    """This stage's transformer layers and its last norm, of Megatron-Core's own modules, with fused core attention and norms."""
    spec = get_gpt_layer_local_spec(
        num_experts=config.num_moe_experts,
        moe_grouped_gemm=config.moe_grouped_gemm,
        qk_layernorm=config.qk_layernorm,
        normalization=config.normalization,
    )
    spec.submodules.self_attention.submodules.core_attention = TorchDotProductAttention
    norm = spec.submodules.input_layernorm
    if config.normalization == "RMSNorm" and norm is WrappedTorchNorm:
        norm = spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = RMSNorm
        if config.qk_layernorm:
            attention = spec.submodules.self_attention.submodules
            wide = family.wide_qk_norm
            attention.q_layernorm, attention.k_layernorm = (_QueryNorm, _KeyNorm) if wide else (RMSNorm, RMSNorm)
    if family.post_norm:  # ``SteerLMGPT`` has the norms that come after
        spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = IdentityOp
    return TransformerBlockSubmodules(layer_specs=[spec] * get_num_layers_to_build(config), layer_norm=norm)


def _then(function: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, Any]]:
    """A hook that applies ``function`` to what a layer's part adds; its bias is separate, and none of the families here has one."""

    def hook(_module: torch.nn.Module, _inputs: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        assert output[1] is None, "a bias would have to be added first"
        return function(output[0]), None

    return hook


class SteerLMGPT(GPTModel):
    """``GPTModel`` that projects onto the vocabulary at the learned positions only: a value model learns one token in twenty.

    The other positions' losses would be multiplied by zero, so the loss and its gradient are the same.

    Rows that pad the vocabulary to a round number are no tokens: their logits are minus infinity. Megatron lets them into the softmax,
    which makes the loss depend on the tensor-parallel size, and differ from that of the model once it is exported.
    """

    def __init__(self, *args: Any, tokens: int, family: Family, multipliers: Mapping[str, float], **kwargs: Any) -> None:
        """``tokens`` is the size of the vocabulary without padding; ``multipliers`` are ModelConfig's; the rest is ``GPTModel``'s."""
        super().__init__(*args, **kwargs)
        self._add_what_families_have(family, multipliers)
        if self.post_process:
            part = divide(self.vocab_size, parallel_state.get_tensor_model_parallel_world_size())
            self._tokens_here = min(part, max(0, tokens - part * parallel_state.get_tensor_model_parallel_rank()))
            if self._tokens_here < part:
                self.output_layer.register_forward_hook(self._hide_padding)

    def _add_what_families_have(self, family: Family, multipliers: Mapping[str, float]) -> None:
        """Norms after attention and MLP, and multipliers: by hooks, which hold where NeMo gives modules other classes for adapters."""
        added, embedded = (multipliers.get(f"{name}_multiplier", 1.0) for name in ("residual", "embedding"))
        divisor = multipliers.get("logits_divisor", 1.0)
        for layer in self.decoder.layers:
            if family.post_norm:
                norms = (RMSNorm(self.config, self.config.hidden_size, self.config.layernorm_epsilon) for _ in range(2))
                layer.post_attention_norm, layer.post_mlp_norm = norms
                layer.self_attention.register_forward_hook(_then(layer.post_attention_norm))
                layer.mlp.register_forward_hook(_then(layer.post_mlp_norm))
            if added != 1:
                layer.self_attention.register_forward_hook(_then(lambda output: output * added))
                layer.mlp.register_forward_hook(_then(lambda output: output * added))
        if self.pre_process and embedded != 1:
            self.embedding.register_forward_hook(lambda _module, _inputs, output: output * embedded)
        if self.post_process and divisor != 1:  # before the product, where there is less of it
            self.decoder.final_layernorm.register_forward_hook(lambda _module, _inputs, output: output / divisor)

    def _hide_padding(self, _module: torch.nn.Module, _inputs: Any, output: tuple[Tensor, Any]) -> None:
        # Behind autograd's back: the gradient of these logits is zero, and nothing that is saved for it is touched.
        output[0].detach()[..., self._tokens_here :].fill_(float("-inf"))

    def _preprocess(self, input_ids: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """As upstream; of a packed micro batch the embeddings ``[packed, 1, h]``, and what each packed token is rotated by."""
        packing = kwargs.get("packed_seq_params")
        if packing is None:
            return super()._preprocess(input_ids, position_ids, *args, **kwargs)
        positions = packing.pack(position_ids)
        embedded, rotary, *rest = super()._preprocess(packing.pack(input_ids).unsqueeze(0), positions.unsqueeze(0), *args, **kwargs)
        if packing.qkv_format == "thd":  # the rotation finds each row's positions by ``cu_seqlens``
            return (embedded, rotary, *rest)
        return (embedded, rotary.index_select(0, positions), *rest)

    def _postprocess(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """With a loss mask ``[b, s]``: losses ``[learned]`` where labels ``[b, s]`` are given, else logits ``[learned, vocab / tp]``.

        In order of sample, then position. Without a loss mask, or before the last pipeline stage, as upstream.
        """
        loss_mask, labels, packing = kwargs.get("loss_mask"), kwargs.get("labels"), kwargs.get("packed_seq_params")
        if not self.post_process or loss_mask is None or self.mtp_process:
            return super()._postprocess(hidden_states, *args, **kwargs)
        if self.config.sequence_parallel:  # hidden states are spread over ranks along the sequence until the output layer gathers them
            return super()._postprocess(hidden_states, *args, **kwargs)[loss_mask]
        # By rows of [s * b, h]: the gradient keeps the layout of the hidden states, without which every product on its way is a slow one.
        sample, position = loss_mask.nonzero(as_tuple=True)
        rows = position * loss_mask.size(0) + sample if packing is None else packing.place[sample, position]
        hidden_states = hidden_states.flatten(0, 1).index_select(0, rows).unsqueeze(1)  # [learned, 1, h]
        if labels is not None:
            kwargs["labels"] = labels[loss_mask].unsqueeze(0)
        return super()._postprocess(hidden_states, *args, **kwargs).squeeze(0)

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Losses ``[b, s]``. A vocabulary that one rank holds needs no exchange, and torch's own loss is one pass over it."""
        if parallel_state.get_tensor_model_parallel_world_size() > 1 or self.config.cross_entropy_loss_fusion:
            losses: Tensor = super().compute_language_model_loss(labels, logits)
            return losses
        return cross_entropy(logits.flatten(0, 1).float(), labels.T.flatten(), reduction="none").view_as(labels.T).T
