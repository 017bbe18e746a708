"""The processes that share a model: Lightning's launcher and trainer, ``torch.distributed``, Megatron's groups."""

from __future__ import annotations

import os
from typing import Any

import torch
from lightning.pytorch import Trainer
from megatron.core import parallel_state, tensor_parallel
from nemo.collections.nlp.parts.nlp_overrides import NLPDDPStrategy
from omegaconf import DictConfig

from nemo_steerlm.megatron import compat

RENDEZVOUS = frozenset({"MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "RANK", "WORLD_SIZE", "GROUP_RANK"})
"""What a launcher tells a process of its place."""


def start_distributed(cfg: DictConfig, trainer: Trainer) -> None:
    """Start this process's ranks: Lightning's launcher, ``torch.distributed``, Megatron's groups. Idempotent.

    Megatron-Core 0.13 takes its process groups while a model is built, NeMo 2.4 still starts them afterwards.
    """
    if parallel_state.model_parallel_is_initialized():
        return
    if not torch.distributed.is_initialized():
        strategy = trainer.strategy
        given = set(os.environ)
        if strategy.launcher is not None:
            strategy.launcher.launch(lambda: None, trainer=trainer)
        strategy.setup_environment()
        # Lightning leaves its rendezvous in the environment, where a process started later would take it for a launcher's.
        for name in RENDEZVOUS - given:
            os.environ.pop(name, None)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=cfg.get("tensor_model_parallel_size", 1),
        pipeline_model_parallel_size=cfg.get("pipeline_model_parallel_size", 1),
        context_parallel_size=cfg.get("context_parallel_size", 1),
    )
    tensor_parallel.model_parallel_cuda_manual_seed(cfg.get("seed", 1234))


def share_cores() -> None:
    """Share the cores out among the processes of this machine, where torchrun gave each one thread, or nobody gave it a number."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not compat.HAVE_CUDA and local > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local))


def make_trainer(*, devices: int = 1, num_nodes: int = 1, precision: str | int = "bf16", **settings: Any) -> Trainer:
    """The Lightning trainer that NeMo models want: it carries the strategy and the sizes, the loop is ``train.py``'s own."""
    compat.activate()
    strategy = NLPDDPStrategy(
        no_ddp_communication_hook=True, find_unused_parameters=False, process_group_backend=compat.process_group_backend()
    )
    return Trainer(
        accelerator="gpu" if compat.HAVE_CUDA else "cpu",
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=precision if compat.HAVE_CUDA else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **settings,
    )
