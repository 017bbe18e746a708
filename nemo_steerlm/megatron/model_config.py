"""NeMo's ``model`` config: its defaults, and how a model is spread over processes. Imports neither NeMo nor torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from omegaconf import DictConfig

from nemo_steerlm.core.errors import ConfigError

DEFAULTS = Path(__file__).parent / "conf" / "model.yaml"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Parallelism:
    """How many processes, and which of them share what."""

    world_size: int
    tensor: int
    pipeline: int

    @property
    def data(self) -> int:
        """Data parallel size."""
        return self.world_size // (self.tensor * self.pipeline)


def check_architecture(model: DictConfig, layout: Parallelism) -> None:
    """Raise ConfigError where the model cannot be divided over the parallel sizes."""
    divided = [
        ("num_layers", "pipeline_model_parallel_size", layout.pipeline),
        ("num_attention_heads", "tensor_model_parallel_size", layout.tensor),
        ("num_query_groups", "tensor_model_parallel_size", layout.tensor),
        ("ffn_hidden_size", "tensor_model_parallel_size", layout.tensor),
    ]
    for name, key, size in divided:
        count = model.get(name)
        if count is not None and count % size:
            raise ConfigError(f"model.{key}={size} does not divide the model's {name}={count}")
