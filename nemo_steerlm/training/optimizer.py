"""The optimizer and its schedule, as NeMo builds them or torch's fused AdamW, and their state in shards like the model's."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.optimizer import get_param_id_to_sharded_param_map, make_sharded_optimizer_tensor
from nemo.core.optim import prepare_lr_scheduler
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from nemo_steerlm.megatron.gpt_sft import SteerLMGPTSFTModel
from nemo_steerlm.training.arithmetic import TORCH
from nemo_steerlm.training.settings import fit_schedule

ADAM_STATE = ("exp_avg", "exp_avg_sq")


def set_up(model: SteerLMGPTSFTModel, max_steps: int) -> None:
    """Give ``model`` its optimizer and schedule from ``model.optim``, whose names ``arithmetic`` and ``settings`` have checked."""
    cfg: DictConfig = model.cfg.optim
    sched = cfg.get("sched")
    if sched is not None:
        fit_schedule(sched, max_steps)
    if cfg.name != TORCH:
        if model.use_mcore_dist_optim:
            model.setup_mcore_distributed_parallel()
        model.configure_optimizers()
        for adam in _torch_adams(model):
            for parameter in _parameters(adam):
                adam.state[parameter] = {
                    "step": torch.tensor(0.0),
                    **{name: torch.zeros_like(parameter) for name in ADAM_STATE},
                }
        return
    model.setup_optimizer_param_groups()
    model._optimizer = torch.optim.AdamW(
        model._optimizer_param_groups,
        lr=cfg.lr,
        betas=tuple(cfg.get("betas", (0.9, 0.98))),
        eps=cfg.get("eps", 1e-8),
        weight_decay=cfg.get("weight_decay", 0.01),
        fused=True,
    )
    model._scheduler = None
    if sched is not None:
        model._scheduler = prepare_lr_scheduler(model._optimizer, OmegaConf.to_container(sched))


def sharded_state(model: SteerLMGPTSFTModel, *, loading: bool) -> dict[str, Any]:
    """Weights (with LoRA the adapters' only), optimizer and progress as Megatron-Core saves and loads them under any layout."""
    weights = model.trainable_sharded_state_dict()
    optimizer = model._optimizer
    state: dict[str, Any] = {"weights": weights}
    if model.use_mcore_dist_optim:
        without_extra = {name: shard for name, shard in weights.items() if not name.endswith("_extra_state")}
        # Each rank saves its shards, which any other layout can read; NeMo's default gathers them, for this layout only.
        state["optimizer"] = optimizer.mcore_optimizer.sharded_state_dict(without_extra, is_loading=loading)
    elif hasattr(optimizer, "sharded_state_dict"):
        state["optimizer"] = optimizer.sharded_state_dict({k: v for k, v in weights.items() if not k.endswith("_extra_state")})
    else:
        state["optimizer"] = _sharded_adam_state(optimizer, weights)
    progress = {"scheduled": model._scheduler["scheduler"].last_epoch if model._scheduler else 0, "adam": _steps_taken(optimizer)}
    # An object of rank 0 that every rank reads back, whatever its place.
    state["progress"] = ShardedObject("progress", None if loading else progress, (1,), (0,), replica_id=torch.distributed.get_rank())
    return state


def load_state(model: SteerLMGPTSFTModel, loaded: dict[str, Any]) -> None:
    """Put what ``sharded_state`` had loaded back into ``model``.

    The schedule is the one that is configured now, run to where the training is: a training that goes on for more steps, or to
    another rate, does so from here on.
    """
    model.load_trainable_state_dict(loaded["weights"])
    optimizer, progress = model._optimizer, loaded["progress"]
    if hasattr(optimizer, "sharded_state_dict"):
        optimizer.load_state_dict(loaded["optimizer"])
        for adam in _torch_adams(model):
            for state in adam.state.values():
                state["step"] = state["step"].clone()  # Megatron-Core gives all parameters one tensor, which each would add to
    else:
        for parameter, values in zip(_parameters(optimizer), loaded["optimizer"]["state"].values(), strict=True):
            optimizer.state[parameter].update({name: values[name].to(parameter.device) for name in ADAM_STATE})
            optimizer.state[parameter]["step"] = _step_count(parameter, progress["adam"])
    if model._scheduler:
        _run_to(model._scheduler["scheduler"], progress["scheduled"])


def _run_to(scheduler: Any, steps: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch expects the optimizer to step between the schedule's steps
        while scheduler.last_epoch < steps:
            scheduler.step()
    for group, lr in zip(scheduler.optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = lr


def _step_count(parameter: Tensor, steps: float) -> Tensor:
    """Adam's count of steps. The fused kernel reads it where the parameter is, as torch itself makes it."""
    return torch.tensor(float(steps), dtype=torch.float32, device=parameter.device)


def _steps_taken(optimizer: Any) -> float:
    """By torch's Adam; the other optimizers save their own."""
    state = getattr(optimizer, "state", {})
    first = next(iter(state.values()), {}) if isinstance(optimizer, torch.optim.AdamW) else {}
    return float(first.get("step", 0.0))


def _torch_adams(model: SteerLMGPTSFTModel) -> list[torch.optim.AdamW]:
    """Inside of Megatron-Core's distributed optimizer, where neither TransformerEngine nor apex has one.

    Megatron-Core can neither save nor load their state before they have taken a step.
    """
    if not model.use_mcore_dist_optim:
        return []
    inner = (part.optimizer for part in model._optimizer.mcore_optimizer.chained_optimizers)
    return [adam for adam in inner if isinstance(adam, torch.optim.AdamW)]


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return list(itertools.chain.from_iterable(group["params"] for group in optimizer.param_groups))


def _sharded_adam_state(optimizer: torch.optim.Optimizer, weights: dict[str, Any]) -> dict[str, Any]:
    """Adam's moments, each sharded as its parameter is. Its step count is the schedule's."""
    parameters = _parameters(optimizer)
    shards = get_param_id_to_sharded_param_map(weights, parameters)
    state: dict[int, dict[str, Any]] = {}
    for i, parameter in enumerate(parameters):
        moments = optimizer.state[parameter]
        for name in ADAM_STATE:
            if name not in moments:
                moments[name] = torch.zeros_like(parameter)
        moments.setdefault("step", _step_count(parameter, 0))
        state[i] = {name: make_sharded_optimizer_tensor(shards[i], moments[name], prefix=f"optimizer.state.{name}") for name in ADAM_STATE}
    return {"state": state}
