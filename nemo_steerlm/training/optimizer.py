"""The optimizer and its schedule, as NeMo builds them or torch's fused AdamW, and their state in shards like the model's."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.optimizer import get_param_id_to_sharded_param_map, make_sharded_optimizer_tensor
from nemo.core.optim import prepare_lr_scheduler
from omegaconf import DictConfig, OmegaConf, open_dict

from nemo_steerlm.core.errors import ConfigError
from nemo_steerlm.megatron import compat
from nemo_steerlm.megatron.gpt_sft import SteerLMGPTSFTModel

logger = logging.getLogger(__name__)

FROM_APEX = ("distributed_fused_adam", "fused_adam", "megatron_fused_adam")
FOR_CUDA = (*FROM_APEX, "mcore_distributed_optim")
ADAM_STATE = ("exp_avg", "exp_avg_sq")


def available_optimizer(name: str, *, adapters_only: bool) -> str:
    """``name``, or ``adamw`` where this machine lacks it or adapters are what is trained, for which NeMo refuses the distributed one."""
    missing = (name in FROM_APEX and not compat.HAVE_APEX) or (name in FOR_CUDA and not compat.HAVE_CUDA)
    if missing or (adapters_only and name in ("distributed_fused_adam", "mcore_distributed_optim")):
        logger.info("optimizer %s is not available here: torch's fused AdamW takes its place", name)
        return "adamw"
    return name


def set_up(model: SteerLMGPTSFTModel, max_steps: int) -> None:
    """Give ``model`` its optimizer and schedule from ``model.optim``. Raises ConfigError for one that does not exist."""
    cfg: DictConfig = model.cfg.optim
    sched = cfg.get("sched")
    if sched is not None:
        _fit_schedule(sched, max_steps)
    if cfg.name == "adamw" and model.megatron_amp_O2:
        raise ConfigError("model.megatron_amp_O2=True needs model.optim.name=distributed_fused_adam and apex")
    if cfg.name != "adamw":
        if model.use_mcore_dist_optim:
            model.setup_mcore_distributed_parallel()
        model.configure_optimizers()
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
        if model._scheduler is None:
            raise ConfigError(f"model.optim.sched.name={sched.get('name')}: no such schedule in NeMo")


def _fit_schedule(sched: DictConfig, max_steps: int) -> None:
    """A training shorter than its warm-up and its constant end has a shorter warm-up and no such end.

    Upstream's schedule would be at ``min_lr`` for all of the training but its warm-up: gpt_sft.yaml's ``constant_steps`` is 1000.
    """
    with open_dict(sched):
        sched.max_steps = max_steps
        warmup, constant = sched.get("warmup_steps") or 0, sched.get("constant_steps") or 0
        if warmup + constant >= max_steps:
            sched.constant_steps, sched.warmup_steps = 0, min(warmup, max_steps // 10)
            logger.info(
                "%d steps are fewer than warmup_steps=%d and constant_steps=%d: %d and 0 take their place",
                max_steps,
                warmup,
                constant,
                sched.warmup_steps,
            )


def sharded_state(model: SteerLMGPTSFTModel, *, loading: bool) -> dict[str, Any]:
    """Weights (with LoRA the adapters' only), optimizer and schedule as Megatron-Core saves and loads them under any layout."""
    weights = model.trainable_sharded_state_dict()
    optimizer = model._optimizer
    state: dict[str, Any] = {"weights": weights}
    if hasattr(optimizer, "sharded_state_dict"):
        state["optimizer"] = optimizer.sharded_state_dict({k: v for k, v in weights.items() if not k.endswith("_extra_state")})
    else:
        state["optimizer"] = _sharded_adam_state(optimizer, weights)
    scheduler = model._scheduler["scheduler"].state_dict() if model._scheduler else {}
    # An object of rank 0 that every rank reads back, whatever its place.
    state["schedule"] = ShardedObject("schedule", None if loading else scheduler, (1,), (0,), replica_id=torch.distributed.get_rank())
    return state


def load_state(model: SteerLMGPTSFTModel, loaded: dict[str, Any]) -> None:
    """Put what ``sharded_state`` had loaded back into ``model``."""
    model.load_trainable_state_dict(loaded["weights"])
    optimizer = model._optimizer
    if hasattr(optimizer, "sharded_state_dict"):
        optimizer.load_state_dict(loaded["optimizer"])
    else:
        for parameter, values in zip(_parameters(optimizer), loaded["optimizer"]["state"].values(), strict=True):
            optimizer.state[parameter].update({name: values[name].to(parameter.device) for name in ADAM_STATE})
    if model._scheduler:
        scheduler = model._scheduler["scheduler"]
        scheduler.load_state_dict(loaded["schedule"])
        steps = torch.tensor(float(scheduler.last_epoch))
        for group, lr in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
            group["lr"] = lr
    else:
        steps = torch.tensor(float(loaded["schedule"].get("step", 0)))
    if not hasattr(optimizer, "sharded_state_dict"):
        for parameter in _parameters(optimizer):
            optimizer.state[parameter]["step"] = steps.clone()


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
        moments.setdefault("step", torch.tensor(0.0))
        state[i] = {name: make_sharded_optimizer_tensor(shards[i], moments[name], prefix=f"optimizer.state.{name}") for name in ADAM_STATE}
    return {"state": state}
