"""What a pipeline's trainings will take on this machine, from the base model's config: memory by its sizes, time by a short measurement."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import msgspec
import numpy as np
from omegaconf import OmegaConf

from nemo_steerlm.core.hardware import Processor
from nemo_steerlm.formats.families import parameters
from nemo_steerlm.formats.families.base import ModelConfig
from nemo_steerlm.formats.hf_config import nemo_config
from nemo_steerlm.megatron.model_config import DEFAULTS, Parallelism
from nemo_steerlm.training.memory import CONTEXT, Work, estimate

START_SECONDS = 40
"""Until a training's first step: imports of NeMo, reading and writing a small model."""
SHARE = 0.4
"""Of the speed of large matrix products, what trainings of small models reach."""
BF16_GAIN = 3.0
"""How much faster than in fp32 matrix products are with bf16 instructions."""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_PROCESS = 1.5 * (1 << 30)
"""What a process of NeMo has before there is a model."""


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """One training as far as its costs go."""

    steps: int
    global_batch_size: int
    micro_batch_size: int
    tokens: int
    """Of a record, at most."""
    mean_tokens: int
    """Of a record, on average."""
    lora_rank: int = 0
    """0: all weights are trained."""


def memory(config: ModelConfig, trainings: Sequence[Workload]) -> float:
    """Bytes that the largest of the trainings takes on a CPU."""
    return max(_memory(config, training) for training in trainings) - CONTEXT + _PROCESS


def disk(config: ModelConfig, trainings: Sequence[Workload]) -> int:
    """Bytes on disk that the trainings take at most.

    Each leaves a .nemo in fp32 and an export in the base model's own type. While all weights are trained there are also two checkpoints,
    the latest and the next: weights and both of Adam's moments in fp32. Adapters' checkpoints are small.
    """
    kept = (4 + _BYTES[config.dtype]) * len(trainings)
    passing = 2 * 12 if any(not training.lora_rank for training in trainings) else 0
    return (kept + passing) * parameters(config)


def _memory(config: ModelConfig, training: Workload) -> float:
    lora = {"lora_tuning": {"target_modules": ["all"], "adapter_dim": training.lora_rank or 1}}
    peft = {"peft": {"peft_scheme": "lora" if training.lora_rank else "none", **lora}}
    model = OmegaConf.merge(OmegaConf.load(DEFAULTS), nemo_config(config), peft)
    micro_batches = training.global_batch_size // training.micro_batch_size
    work = Work(micro_batch_size=training.micro_batch_size, micro_batches=micro_batches, width=training.tokens, learned=training.tokens)
    return estimate(model, config.vocab_size, Parallelism(world_size=1, tensor=1, pipeline=1), work, bf16=False).total


def seconds(config: ModelConfig, training: Workload, speed: float) -> float:
    """About how long a training takes at ``speed`` floating-point operations a second."""
    # Two a weight and token forward, two for the gradient of what goes in, two for that of the weights, which adapters spare.
    work = (4 if training.lora_rank else 6) * parameters(config)
    return START_SECONDS + work * training.steps * training.global_batch_size * training.mean_tokens / speed


def speed(processor: Processor, size: int = 1024) -> float:
    """Floating-point operations a second that a training may reach here, by a matrix product or two."""
    matrix = np.ones((size, size), dtype=np.float32)
    best = math.inf
    for _ in range(4):
        began = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best * SHARE * (BF16_GAIN if processor.bf16 else 1.0)
