"""What a training takes of each device's memory, from its sizes alone, before anything is loaded. docs/training.md derives the terms."""

from __future__ import annotations

import dataclasses

from omegaconf import DictConfig

from nemo_steerlm.core.errors import ConfigError
from nemo_steerlm.megatron.model_config import Parallelism

GIB = 1 << 30
CONTEXT = 1.5 * GIB
"""CUDA's context, NCCL's buffers, and what the allocator cannot use."""
MCORE = "mcore_distributed_optim"
"""The optimizer that is Megatron-Core's own."""
_OPTIMIZER = {"distributed_fused_adam", MCORE}
"""Optimizers whose state is spread over the data-parallel ranks."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on the device that needs most."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        """With what CUDA takes for itself."""
        return self.weights + self.gradients + self.optimizer + self.activations + CONTEXT

    def __str__(self) -> str:
        parts = {name: getattr(self, name) / GIB for name in ("weights", "gradients", "optimizer", "activations")}
        named = ", ".join(f"{name} {size:.1f}" for name, size in parts.items())
        return f"{self.total / GIB:.1f} GiB a device ({named}, the rest CUDA's own)"

    def require(self, device_bytes: float) -> None:
        """Raise ConfigError where a device has less."""
        if self.total > device_bytes:
            raise ConfigError(
                f"this training needs {self}, and a device has {device_bytes / GIB:.1f} GiB; train with LoRA, recompute activations "
                "(model.activations_checkpoint_granularity=full), lower micro_batch_size, or spread the model over more devices"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one device computes at a time."""

    micro_batch_size: int
    micro_batches: int
    width: int
    """Tokens of the longest record."""
    learned: int
    """Tokens at most that a record teaches."""


def estimate(model: DictConfig, vocabulary: int, layout: Parallelism, work: Work, *, bf16: bool) -> Memory:
    """Of a training of ``model`` with this vocabulary; ``bf16`` is what GPUs compute in, a CPU keeps fp32 throughout."""
    size = 2 if bf16 else 4
    layers, ends, adapted = _parameters(model, vocabulary, layout)
    parameters = layers + ends
    adapters = model.peft.peft_scheme not in (None, "none")
    if adapters:
        weights, gradients, optimizer = parameters * size + 4 * adapted, 4 * adapted, 8 * adapted
    else:
        masters = bool(model.megatron_amp_O2)
        spread = layout.data * layout.context if model.optim.name in _OPTIMIZER else 1
        # Without masters in the optimizer weights are fp32, and autocast keeps a copy of each in bf16.
        weights = parameters * (2 if masters else 4 + (2 if bf16 else 0))
        gradients, optimizer = 4 * parameters, parameters * (12 if masters else 8) / spread
    return Memory(
        weights=weights, gradients=gradients, optimizer=optimizer, activations=_activations(model, vocabulary, layout, work, size)
    )


def _parameters(model: DictConfig, vocabulary: int, layout: Parallelism) -> tuple[float, float, float]:
    """On one device: of its layers, of the larger of embedding and output layer, and of adapters."""
    layers, adapted = matrix_parameters(model, layout)
    hidden = model.hidden_size
    multiple = model.make_vocab_size_divisible_by * layout.tensor
    rows = -(-vocabulary // multiple) * multiple / layout.tensor
    tied = model.share_embeddings_and_output_weights
    ends = rows * hidden * (2 if layout.pipeline == 1 and not tied else 1)
    return layers + 2 * hidden * model.num_layers / layout.pipeline, ends, adapted


def matrix_parameters(model: DictConfig, layout: Parallelism) -> tuple[float, float]:
    """Of the layers' matrices on one device, and of the adapters that ``model.peft`` names for them."""
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    heads, groups, width = _heads(model)
    gates = 2 if model.activation in ("fast-swiglu", "swiglu", "fast-geglu", "geglu") else 1
    matrices = {
        "attention_qkv": (hidden, (heads + 2 * groups) * width),
        "attention_dense": (heads * width, hidden),
        "mlp_fc1": (hidden, gates * ffn),
        "mlp_fc2": (ffn, hidden),
    }
    experts = model.get("num_moe_experts") or 1
    layer = sum(i * o * (experts if name.startswith("mlp") else 1) for name, (i, o) in matrices.items()) / layout.tensor
    here = model.num_layers / layout.pipeline
    tuning = model.peft.lora_tuning
    targets = set(tuning.target_modules)
    for group, members in {
        "attention": ("attention_qkv", "attention_dense"),
        "mlp": ("mlp_fc1", "mlp_fc2"),
        "all": tuple(matrices),
    }.items():
        targets |= set(members) if group in targets else set()
    rank = tuning.adapter_dim
    adapted = sum(rank * (i + o) for name, (i, o) in matrices.items() if name in targets) * here
    return layer * here, adapted


def _heads(model: DictConfig) -> tuple[int, int, int]:
    heads = model.num_attention_heads
    return heads, model.get("num_query_groups") or heads, model.get("kv_channels") or model.hidden_size // heads


def _activations(model: DictConfig, vocabulary: int, layout: Parallelism, work: Work, size: int) -> float:
    """What the backward pass needs: of a layer the inputs of both norms and of all products, the gate beside, and attention's result."""
    heads, groups, width = _heads(model)
    tokens = work.micro_batch_size * work.width / layout.context
    # What tensor parallelism leaves whole, and sequence parallelism divides.
    whole = 4 * model.hidden_size / (layout.tensor if model.get("sequence_parallel") else 1)
    divided = ((2 * heads + 2 * groups) * width + 3 * model.ffn_hidden_size) / layout.tensor
    layer = (whole + divided) * size
    if not model.get("transformer_engine") and heads != groups:
        layer += 2 * heads * width / layout.tensor * size  # keys and values repeated for their queries
    layers = model.num_layers / layout.pipeline
    waiting = min(layout.pipeline, work.micro_batches)
    if model.get("activations_checkpoint_granularity") == "full":
        kept = layers * waiting * model.hidden_size * size + layer
    else:
        kept = layers * waiting * layer
    # Logits in their own type, in fp32 for the loss, and their gradient.
    logits = work.micro_batch_size * work.learned * vocabulary / layout.tensor * (size + 8)
    return float(tokens * kept + logits)
