"""In what precision a training computes, and which optimizer keeps its masters: decided in the plan, from settings and machine alone.

On GPUs in bf16, full training keeps weights in bf16 and their fp32 masters, moments included, spread over the data-parallel ranks.
Megatron-Core's distributed optimizer does so without apex; with apex upstream's choice stands. Adapters are few: they are fp32 throughout
and so their own masters, and what they adapt is frozen in bf16.
"""

from __future__ import annotations

import logging

from omegaconf import DictConfig, open_dict

from nemo_steerlm.core.errors import ConfigError, nearest, shown
from nemo_steerlm.megatron.machine import Machine
from nemo_steerlm.training.memory import MCORE

logger = logging.getLogger(__name__)

PRECISIONS = {"32": "32", "32-true": "32", "bf16": "bf16", "bf16-mixed": "bf16", "bf16-true": "bf16"}
TORCH = "adamw"
FROM_APEX = ("distributed_fused_adam", "fused_adam", "megatron_fused_adam")
OPTIMIZERS = (TORCH, MCORE, *FROM_APEX)


def precision_of(value: object) -> str:
    """``bf16`` or ``32``. Raises ConfigError for every other arithmetic."""
    if str(value) in ("16", "16-mixed", "16-true", "fp16"):
        raise ConfigError(f"trainer.precision={value}: fp16 is not supported; write bf16 or 32")
    if str(value) not in PRECISIONS:
        raise ConfigError(f"trainer.precision={shown(value)}: write bf16 or 32")
    return PRECISIONS[str(value)]


def check_optimizer(name: object, *, o2: bool) -> None:
    """Raise ConfigError for an optimizer that there is not, or that has no masters although O2 wants them."""
    if name not in OPTIMIZERS:
        raise ConfigError(f"model.optim.name={name}: {nearest(str(name), OPTIMIZERS)}known: {', '.join(OPTIMIZERS)}")
    if o2 and name == TORCH:
        raise ConfigError(f"model.megatron_amp_O2=True: {TORCH} keeps no fp32 masters; write model.optim.name={MCORE}")


def choose(model: DictConfig, precision: object, machine: Machine) -> None:
    """Set ``precision``, ``megatron_amp_O2`` and ``optim.name`` of a training's model config."""
    bf16 = precision_of(precision) == "bf16"
    check_optimizer(model.optim.name, o2=bool(model.megatron_amp_O2))
    adapters = model.peft.peft_scheme not in (None, "none")
    name = _available(model.optim.name, adapters=adapters, machine=machine)
    if name in FROM_APEX and model.get("qk_layernorm") and model.tensor_model_parallel_size > 1 and not adapters:
        name = MCORE  # which adds up what each rank's heads say of the norms that they share
    if name != model.optim.name:
        what = {TORCH: "torch's fused AdamW", MCORE: "Megatron-Core's distributed optimizer"}[name]
        logger.info("optimizer %s is not available here: %s takes its place", model.optim.name, what)
    with open_dict(model):
        model.precision = "bf16" if bf16 else "32"
        model.optim.name = name
        # NeMo's O2 would make adapters bf16 as well: ``lora.add`` keeps the base in bf16 by itself.
        masters = name == MCORE or model.megatron_amp_O2
        model.megatron_amp_O2 = bool(machine.cuda and bf16 and masters and not adapters)
        if name == MCORE:
            model.optim.average_in_collective = machine.cuda  # gloo only adds


def _available(name: str, *, adapters: bool, machine: Machine) -> str:
    if adapters:
        return name if name in ("fused_adam", "megatron_fused_adam") and machine.apex and machine.cuda else TORCH
    if name in FROM_APEX and not (machine.apex and machine.cuda):
        return MCORE if machine.cuda else TORCH
    return name
