"""Low-rank adapters: NeMo's own, attached to Megatron-Core's modules, and merged into the weights when training is over."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.mlp import MLP, apply_swiglu_sharded_factory
from nemo.collections.nlp.modules.common.megatron.adapters.mcore_mixins import MCoreMLPMixin, MCoreSelfAttentionMixin
from nemo.collections.nlp.modules.common.megatron.adapters.parallel_adapters import AdapterName, ParallelLinearAdapter
from nemo.collections.nlp.parts.peft_config import LoraPEFTConfig
from torch import Tensor

from nemo_steerlm.megatron.gpt_sft import SteerLMGPTSFTModel
from nemo_steerlm.megatron.hf_import import gpt_modules
from nemo_steerlm.megatron.marker_rows import MarkerRows

ADAPTED = {
    AdapterName.LORA_KQV_ADAPTER: "linear_qkv",
    AdapterName.LORA_DENSE_ATTENTION_ADAPTER: "linear_proj",
    AdapterName.LORA_Hto4H_ADAPTER: "linear_fc1",
    AdapterName.LORA_4HtoH_ADAPTER: "linear_fc2",
}
"""The matrix that each kind of adapter is added to."""


class AdaptedSelfAttention(MCoreSelfAttentionMixin):
    """NeMo's mixin with Megatron-Core's own forward pass.

    Seen: the mixin of nemo 2.4.1 copies the forward pass of an older Megatron-Core and cannot be called by 0.13. Remove when they agree.
    """

    def mcore_register_adapters(self) -> None:
        """As upstream; the adapter of the output projection is added by a hook, since the forward pass is not copied."""
        super().mcore_register_adapters()
        if not self.linear_proj._forward_hooks:
            self.linear_proj.register_forward_hook(self._add_output_adapter)

    def _add_output_adapter(self, _module: torch.nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        adapter = self.get_adapter_module(AdapterName.LORA_DENSE_ATTENTION_ADAPTER) if self.is_adapter_available() else None
        return output if adapter is None else (output[0] + adapter(inputs[0]), output[1])

    def get_query_key_value_tensors(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """As upstream, which leaves out that queries and keys may be normalized."""
        query, key, value = super().get_query_key_value_tensors(*args, **kwargs)
        norms = self.q_layernorm, self.k_layernorm
        query, key = (x if norm is None else norm(x) for x, norm in zip((query, key), norms, strict=True))
        return query, key, value

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Megatron-Core's forward pass; it calls the mixin's ``get_query_key_value_tensors``."""
        return SelfAttention.forward(self, *args, **kwargs)


class AdaptedMLP(MCoreMLPMixin):
    """NeMo's mixin under the signature of Megatron-Core 0.13."""

    def forward(self, hidden_states: Tensor, per_token_scale: Tensor | None = None) -> Any:
        """See MCoreMLPMixin.forward; ``per_token_scale`` is for mixtures of experts only."""
        assert per_token_scale is None, "train_config.check_adapters lets no mixture of experts through"
        return super().forward(hidden_states)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: dict[str, Any] | None = None) -> dict[str, Any]:
        """As Megatron-Core's, which knows no adapters. Those of fc1 are split over ranks as fc1 is: gate and up each by itself."""
        adapters = self._modules.pop("adapter_layer", None)
        state: dict[str, Any] = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        if adapters is not None:
            self._modules["adapter_layer"] = adapters
            for name, adapter in adapters.items():
                # Not by an f-string: names are members of an enumeration, which Python 3.10 and 3.11 format differently.
                state |= adapter.sharded_state_dict(prefix + "adapter_layer." + name + ".", sharded_offsets, metadata)
            outer = prefix + "adapter_layer." + AdapterName.LORA_Hto4H_ADAPTER + ".linear_out.weight"
            if outer in state and self.config.gated_linear_unit:
                state[outer] = apply_swiglu_sharded_factory(state[outer], sharded_offsets)
        return state


def add(model: SteerLMGPTSFTModel) -> None:
    """Freeze ``model`` and add the adapters that ``model.peft.lora_tuning`` asks for, which ``train_config`` has checked."""
    config = LoraPEFTConfig(model.cfg)
    replaced = {MCoreSelfAttentionMixin: AdaptedSelfAttention, MCoreMLPMixin: AdaptedMLP}
    config.name_key_to_mcore_mixins = {
        name: [(target, replaced.get(mixin, mixin)) for target, mixin in targets]
        for name, targets in config.name_key_to_mcore_mixins.items()
    }
    model.add_adapter(config)
    # Adapters start on the CPU generator of their rank: data-parallel copies must start alike.
    for parameter in model.model.parameters():
        if parameter.requires_grad:
            group = parallel_state.get_data_parallel_group()
            torch.distributed.broadcast(parameter.data, torch.distributed.get_global_rank(group, 0), group=group)


def learn_markers(model: SteerLMGPTSFTModel, tokens: Sequence[int]) -> None:
    """Learn the embedding rows of these tokens beside the adapters."""
    (gpt,) = gpt_modules(model)
    gpt.marker_rows = model.marker_rows = MarkerRows(gpt, tokens)


def freeze_in(model: SteerLMGPTSFTModel, kind: torch.dtype) -> None:
    """Keep what is frozen in ``kind``. Adapters stay in fp32, so that small updates are not lost: they are their own masters."""
    for parameter in model.model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(kind)


def merge(model: SteerLMGPTSFTModel) -> None:
    """Add every adapter's product to the weight it adapts, and remove the adapters. Every rank calls this."""
    with torch.no_grad():
        for module in list(model.model.modules()):
            adapters = getattr(module, "adapter_layer", None)
            if adapters is None:
                continue
            if isinstance(module, SelfAttention):
                module.linear_proj._forward_hooks.clear()
            for name, adapter in adapters.items():
                weight = getattr(module, ADAPTED[name]).weight
                weight.copy_(weight.float() + _product(adapter).float() * (adapter.alpha / adapter.dim))  # rounded once
            del module.adapter_layer
            module.__class__ = SelfAttention if isinstance(module, SelfAttention) else MLP
    if model.marker_rows is not None:
        model.marker_rows.write()
        (gpt,) = gpt_modules(model)
        model.marker_rows.remove()
        del gpt.marker_rows
        model.marker_rows = None
    model.use_peft = False
    model.cfg.peft.peft_scheme = "none"
    for parameter in model.model.parameters():
        parameter.requires_grad = True


@contextlib.contextmanager
def merged(model: SteerLMGPTSFTModel) -> Iterator[None]:
    """Every adapter's product in the weights as long as the block runs, so that the model can be exported in the middle of a training.

    Adapters stay where they are, so nothing is to be computed meanwhile, and an export is told (``in_training``). Every rank calls this.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for module in model.model.modules():
            for name, adapter in (getattr(module, "adapter_layer", None) or {}).items():
                weight = getattr(module, ADAPTED[name]).weight
                kept.append((weight, weight.detach().clone()))
                weight.copy_(weight.float() + _product(adapter).float() * (adapter.alpha / adapter.dim))
        try:  # what markers learned is in the embedding already
            yield
        finally:
            for weight, before in kept:
                weight.copy_(before)


def _product(adapter: ParallelLinearAdapter) -> Tensor:
    """This rank's part ``[out, in]`` of the adapter as one matrix.

    Column-parallel layers split the output: the inner dimension is gathered, the outer weight is this rank's already. Row-parallel
    layers split the input: the inner weight is this rank's, the rows of the outer one are gathered.
    """
    inner, outer = adapter.linear_in.weight, adapter.linear_out.weight
    if adapter.input_is_parallel:
        return gathered(outer) @ inner
    return outer @ gathered(inner)


def gathered(weight: Tensor, dim: int = 0) -> Tensor:
    """A weight that tensor-parallel ranks share out along ``dim``, whole."""
    size = parallel_state.get_tensor_model_parallel_world_size()
    if size == 1:
        return weight
    parts = [torch.empty_like(weight) for _ in range(size)]
    torch.distributed.all_gather(parts, weight.contiguous(), group=parallel_state.get_tensor_model_parallel_group())
    return torch.cat(parts, dim=dim)
