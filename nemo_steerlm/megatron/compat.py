"""Workarounds for machines without CUDA, apex or TransformerEngine. No other module works around its environment.

Written against nemo_toolkit 2.4.1 and megatron-core 0.13.1. Every workaround is active only if the piece it replaces is missing, and says
when it can be removed. ``activate()`` applies them once per process, before a model is built.

Not here, because no patch is needed: the layers without TransformerEngine (``layers.py``), parameter groups and gradient clipping
without apex (``gpt_sft.py``), the optimizer in place of apex's (``training/optimizer.py``).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.managers import SyncManager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from nemo_steerlm.core.processes import die_with_parent
from nemo_steerlm.megatron.imports import lean_imports

logger = logging.getLogger(__name__)

HAVE_CUDA = torch.cuda.is_available()
HAVE_APEX = importlib.util.find_spec("apex") is not None and importlib.util.find_spec("amp_C") is not None
HAVE_TRANSFORMER_ENGINE = HAVE_CUDA and importlib.util.find_spec("transformer_engine") is not None


@contextlib.contextmanager
def importing_nemo() -> Iterator[None]:
    """Import NeMo in the body of this context, without what this project does not use; without CUDA, ``torch.compile`` does nothing.

    Megatron-Core and NeMo apply ``torch.compile`` at module level, which imports torch's compiler. Without CUDA, ``fused.py`` replaces most
    of these functions, and the others run uncompiled, so that no C++ compiler is needed. Seen: megatron-core 0.13.1, ``jit.py``.
    """
    compiling = torch.compile
    with lean_imports("nemo"):
        if not HAVE_CUDA:
            torch.compile = _as_it_is
        try:
            yield
        finally:
            torch.compile = compiling


def _as_it_is(function: Callable[..., Any] | None = None, **_options: Any) -> Any:
    return _as_it_is if function is None else function


@functools.cache
def activate() -> None:
    """Apply what this machine needs, and name each missing piece once in the log. Idempotent."""
    from nemo.utils import logging as nemo_logging

    nemo_logging.setLevel(nemo_logging.ERROR)  # it warns of every Megatron setting that a model config leaves at its default
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _nvidia_container_version()
    if not HAVE_APEX:
        logger.info("apex is missing: torch's AdamW, gradient clipping and norms take its place")
        _names_from_apex()
    if not HAVE_APEX and not HAVE_TRANSFORMER_ENGINE:
        _step_of_torchs_adam()
    if not HAVE_TRANSFORMER_ENGINE:
        logger.info("TransformerEngine is missing: Megatron-Core's own layers with torch's scaled_dot_product_attention take its place")
        _fused_functions()
    if not HAVE_CUDA:
        logger.info("CUDA is missing: everything runs on the CPU, processes talk over gloo")
        _linear_without_exchange()
        _cuda_on_cpu()
        _rng_tracker_on_cpu()
        _distributed_optimizer_on_cpu()
        _checkpoint_queue_by_fork()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Exchange large objects over gloo in the body of this context, with one OpenMP thread if there is no CUDA.

    Gloo's copy thread spawns its own OpenMP pool; the extra threads oversubscribe the cores and disable spin-waiting, which slows every
    later training step. Seen: torch 2.14.1 with libgomp.
    """
    threads = torch.get_num_threads()
    if not HAVE_CUDA:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def process_group_backend() -> str:
    """The ``torch.distributed`` backend of this machine."""
    return "nccl" if HAVE_CUDA else "gloo"


def _nvidia_container_version() -> None:
    """``MegatronBaseModel._enable_nvidia_optimizations`` matches a regex against this variable, which only NVIDIA's container sets.

    Seen: nemo 2.4.1, ``TypeError: expected string or bytes-like object, got 'NoneType'``. Remove when NeMo tests for None first.
    """
    os.environ.setdefault("NVIDIA_PYTORCH_VERSION", "none")


def _names_from_apex() -> None:
    """Names that NeMo takes from apex, although what they guard works without it.

    Seen: nemo 2.4.1. ``NLPDDPStrategy`` refuses to be built unless ``HAVE_APEX``, which guards nothing that a torch optimizer uses;
    ``build_model`` calls apex's copy of a function that Megatron-Core has as well. Remove when NeMo imports it from Megatron-Core.
    """
    from megatron.core.tensor_parallel.layers import set_defaults_if_not_set_tensor_model_parallel_attributes
    from nemo.collections.nlp.modules.common.megatron import build_model
    from nemo.collections.nlp.parts import nlp_overrides

    nlp_overrides.HAVE_APEX = True
    build_model.set_defaults_if_not_set_tensor_model_parallel_attributes = set_defaults_if_not_set_tensor_model_parallel_attributes


def _step_of_torchs_adam() -> None:
    """Megatron-Core's distributed optimizer loads a checkpoint also where torch's Adam is inside of it.

    Seen: megatron-core 0.13.1, ``DistributedOptimizer._set_main_param_and_optimizer_states`` copies all that the optimizer holds of a
    parameter out of a checkpoint, which has no ``step`` of each; ``load_state_dict`` has set that before. Remove when it leaves it out.
    """
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    copy = DistributedOptimizer._set_main_param_and_optimizer_states

    @functools.wraps(copy)
    def copy_all_but_step(self: Any, model_param: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
        group, place = self.model_param_group_index_map[model_param]
        held = self.optimizer.state[self.optimizer.param_groups[group]["params"][place]]
        copy(self, model_param, {**({"step": held["step"]} if "step" in held else {}), **tensors})

    DistributedOptimizer._set_main_param_and_optimizer_states = copy_all_but_step


def _fused_functions() -> None:
    """Megatron-Core's ``apply_rope_fusion`` and ``bias_activation_fusion`` call the functions of ``fused.py``.

    Seen: megatron-core 0.13.1, ``rope_utils.py`` has TransformerEngine's function for the one, ``fused_bias_swiglu.py`` for the other what
    ``torch.compile`` makes, which needs a C++ compiler on a CPU. Remove when a layer specification can name its own.
    """
    from megatron.core.fusions import fused_bias_swiglu
    from megatron.core.models.common.embeddings import rope_utils

    from nemo_steerlm.megatron import fused

    rope_utils.fused_apply_rotary_pos_emb = fused.rotate
    if not HAVE_CUDA:
        fused_bias_swiglu.SwiGLUFunction = fused.SwiGLU


def _linear_without_exchange() -> None:
    """A linear layer whose input, output and gradient need no other rank is torch's.

    Seen: megatron-core 0.13.1, ``tensor_parallel/layers.py`` overlaps communication with products in autograd functions of Python, which
    cost a small layer on a CPU a tenth of its time also where there is nothing to communicate. Remove when it asks first.
    """
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import layers

    from nemo_steerlm.megatron import fused

    asked = ("gradient_accumulation_fusion", "allreduce_dgrad", "sequence_parallel", "grad_output_buffer")

    def unless_exchanging(exchanging: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        @functools.wraps(exchanging)
        def linear(**given: Any) -> torch.Tensor:
            if not any(given[key] for key in asked):
                return fused.linear(given["input"], given["weight"], given["bias"])
            if torch.is_autocast_enabled("cpu"):  # these functions know CUDA's only, and would multiply what it gives them by fp32
                kind = torch.get_autocast_dtype("cpu")
                given |= {"input": given["input"].to(kind), "weight": fused.multiplied(given["weight"]).to(kind)}
            return exchanging(**given)

        return linear

    def unless_alone(exchange: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        @functools.wraps(exchange)
        def region(input_: torch.Tensor, group: Any = None) -> torch.Tensor:
            alone = (group or parallel_state.get_tensor_model_parallel_group()).size() == 1
            return input_ if alone else exchange(input_, group)

        return region

    for name in ("linear_with_grad_accumulation_and_async_allreduce", "linear_with_frozen_weight"):
        setattr(layers, name, unless_exchanging(getattr(layers, name)))
    for name in ("copy_to_tensor_model_parallel_region", "reduce_from_tensor_model_parallel_region"):
        setattr(layers, name, unless_alone(getattr(layers, name)))


def _cuda_on_cpu() -> None:
    """``torch.cuda`` calls and ``device="cuda"`` arguments spread through NeMo and Megatron-Core mean the CPU.

    Seen: megatron-core 0.13.1 (``pipeline_parallel/schedules.py``, ``optimizer/clip_grads.py``, ``dist_checkpointing``, embeddings),
    nemo 2.4.1 (``megatron_gpt_model.py``, text generation). Remove when both take the device from the parameters.
    """
    cpu = torch.device("cpu")
    stand_ins: dict[str, Callable[..., Any]] = {
        "current_device": lambda: cpu,
        "set_device": _nothing,
        "synchronize": _nothing,
        "empty_cache": _nothing,
        "get_rng_state": lambda *_args, **_kwargs: torch.get_rng_state(),
        "set_rng_state": lambda state, *_args, **_kwargs: torch.set_rng_state(state),
        "manual_seed": torch.manual_seed,
        "Stream": _nothing,
        "current_stream": _nothing,
        "FloatTensor": torch.FloatTensor,
        "LongTensor": torch.LongTensor,
        "ByteTensor": torch.ByteTensor,
        "IntTensor": torch.IntTensor,
        "BoolTensor": torch.BoolTensor,
    }
    for name, stand_in in stand_ins.items():
        setattr(torch.cuda, name, stand_in)
    torch.Tensor.cuda = _itself  # type: ignore[method-assign]
    torch.nn.Module.cuda = _itself  # type: ignore[method-assign]
    for name in ("zeros", "ones", "empty", "full", "tensor", "arange", "rand", "randn", "randint", "zeros_like", "ones_like", "empty_like"):
        setattr(torch, name, _on_cpu(getattr(torch, name)))


def _nothing(*_args: Any, **_kwargs: Any) -> None:
    return None


def _itself(self: Any, *_args: Any, **_kwargs: Any) -> Any:
    return self


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def create(*args: Any, **kwargs: Any) -> torch.Tensor:
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return factory(*args, **kwargs)

    return create


def _rng_tracker_on_cpu() -> None:
    """Megatron-Core's random number tracker keeps the CPU generator's states.

    Seen: megatron-core 0.13.1, ``tensor_parallel/random.py`` reads ``torch.cuda.default_generators``. Remove when the tracker takes a
    device.
    """
    from megatron.core.tensor_parallel import random

    random._get_cuda_rng_state = lambda *_args, **_kwargs: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_args, **_kwargs: torch.set_rng_state(state)
    # It warns whenever the CPU's state changes within ``fork``, which is what is wanted here.
    logging.getLogger(random.__name__).setLevel(logging.ERROR)


class _CudaTypeNames(TorchFunctionMode):
    """``tensor.type()`` says ``torch.cuda.FloatTensor`` of a tensor on the CPU."""

    def __torch_function__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        return result.replace("torch.", "torch.cuda.") if function is torch.Tensor.type and isinstance(result, str) else result


def _distributed_optimizer_on_cpu() -> None:
    """Megatron-Core's distributed optimizer takes parameters that lie on the CPU.

    Seen: megatron-core 0.13.1, ``distrib_optimizer.py`` sorts parameters by the name of their type, ``torch.cuda.FloatTensor``, while it is
    built. Remove when it asks for their dtype.
    """
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    build = DistributedOptimizer.__init__

    @functools.wraps(build)
    def build_on_cpu(*args: Any, **kwargs: Any) -> None:
        with _CudaTypeNames():
            build(*args, **kwargs)

    DistributedOptimizer.__init__ = build_on_cpu


def _end_with(parent: int) -> None:
    """A forked server would outlive a training that is killed, and hold its output open."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent(parent)


def _checkpoint_queue_by_fork() -> None:
    """The queue server that collects what the writers of a distributed checkpoint have done is forked.

    Seen: megatron-core 0.13.1, ``dist_checkpointing/strategies/filesystem_async.py`` starts it with ``spawn`` for the sake of CUDA,
    which runs the program's imports again: half a minute for the first save. Remove when the start method can be chosen.
    """
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    managers: list[Any] = []  # a manager stops its server when it is collected

    @functools.cache
    def results_queue() -> Any:
        managers.append(SyncManager(ctx=multiprocessing.get_context("fork")))
        managers[0].start(_end_with, (os.getpid(),))
        return managers[0].Queue()

    filesystem_async._get_write_results_queue = results_queue
