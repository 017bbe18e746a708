"""What a model config says of the machine that it runs on: set when a model is built, never stored. Imports neither NeMo nor Megatron.

A ``.nemo`` that a machine without GPUs wrote has to train on GPUs as if one with GPUs had written it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from nemo_steerlm.megatron import compat
from nemo_steerlm.megatron.model_config import DEFAULTS

_ON_CPU: dict[str, Any] = {
    "use_cpu_initialization": True,
    "precision": "32",
    "megatron_amp_O2": False,
    "use_flash_attention": False,
    "batch_p2p_comm": False,
    "gradient_accumulation_fusion": False,
    "fp8": False,
}
"""What a model without CUDA cannot be built without."""

_ON_CUDA: dict[str, Any] = {"use_cpu_initialization": False, "batch_p2p_comm": True}

_TRANSFORMER_ENGINE: dict[str, Any] = {
    "transformer_engine": True,
    "masked_softmax_fusion": True,
    "bias_activation_fusion": True,
    "bias_dropout_add_fusion": True,
    "persist_layer_norm": True,
    "apply_rope_fusion": True,
}

_LOCAL_LAYERS: dict[str, Any] = {
    "transformer_engine": False,
    "masked_softmax_fusion": False,
    "bias_dropout_add_fusion": False,
    "persist_layer_norm": False,
    "apply_rope_fusion": True,  # ``fused.rotate``
}
"""What goes with Megatron-Core's own layers, where TransformerEngine is missing."""

_OF_THE_MACHINE = (*_ON_CPU.keys() - {"precision"}, *_ON_CUDA, *_TRANSFORMER_ENGINE)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What is installed and plugged in."""

    cuda: bool
    apex: bool = False
    transformer_engine: bool = False

    @classmethod
    def here(cls) -> Machine:
        """This one."""
        return cls(cuda=compat.HAVE_CUDA, apex=compat.HAVE_APEX, transformer_engine=compat.HAVE_TRANSFORMER_ENGINE)


def fitted(cfg: DictConfig, machine: Machine) -> DictConfig:
    """``cfg`` as ``machine`` builds it, whatever machine wrote it."""
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.update(_ON_CUDA if machine.cuda else _ON_CPU)
        if not machine.apex:
            cfg.gradient_accumulation_fusion = False  # a kernel of apex's
        if machine.transformer_engine:
            cfg.update(_TRANSFORMER_ENGINE)
            return cfg
        cfg.update(_LOCAL_LAYERS)
        # ``fused.SwiGLU`` on a CPU; on GPUs Megatron-Core's has to be compiled.
        cfg.bias_activation_fusion = not machine.cuda and cfg.get("activation") == "fast-swiglu" and not cfg.get("bias")
        if cfg.get("activations_checkpoint_granularity") == "selective":
            # It recomputes core attention, which torch's fused attention does by itself.
            cfg.activations_checkpoint_granularity = None
    return cfg


def portable(cfg: DictConfig) -> DictConfig:
    """``cfg`` as it is stored: what ``fitted`` sets is at ``model.yaml``'s value, or not there."""
    cfg, defaults = cfg.copy(), OmegaConf.load(DEFAULTS)
    with open_dict(cfg):
        for key in _OF_THE_MACHINE:
            if key in defaults:
                cfg[key] = defaults[key]
            else:
                cfg.pop(key, None)
    return cfg
