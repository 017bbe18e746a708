"""NeMo's ``model`` config: its defaults, and how a model is spread over processes. Imports neither NeMo nor torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from omegaconf import DictConfig

from nemo_steerlm.core.errors import ConfigError
from nemo_steerlm.formats.hf_config import named_family

DEFAULTS = Path(__file__).parent / "conf" / "model.yaml"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Parallelism:
    """How many processes, and which of them share what."""

    world_size: int
    tensor: int
    pipeline: int
    context: int = 1

    @property
    def data(self) -> int:
        """Data parallel size."""
        return self.world_size // (self.tensor * self.pipeline * self.context)


def check_architecture(model: DictConfig, layout: Parallelism, *, transformer_engine: bool = False) -> None:
    """Raise ConfigError where the model cannot be divided over the parallel sizes, or has what its layers here do not compute."""
    if model.get("mcore_gpt") is False:
        raise ConfigError("model.mcore_gpt=False: only Megatron-Core models are supported")
    family = named_family(model)
    if family.wide_qk_norm and layout.tensor > 1:
        raise ConfigError(
            f"model.tensor_model_parallel_size={layout.tensor}: an {family.model_type} model normalizes queries and keys over all heads, "
            "which tensor parallelism would share out; write 1, and spread it over pipeline stages"
        )
    if family.post_norm and transformer_engine:
        raise ConfigError(
            f"the norms of a {family.model_type} model come after attention and MLP, where TransformerEngine's layers have none; "
            "train it where TransformerEngine is not installed"
        )
    if not transformer_engine:
        if model.get("window_size") is not None:
            raise ConfigError(
                f"the model attends within a window (window_size={model.window_size}), which only TransformerEngine computes; "
                "it is not installed here"
            )
        if model.get("sequence_parallel") and model.get("normalization") != "rmsnorm":
            raise ConfigError(
                f"model.sequence_parallel=true: the norms of this model ({model.get('normalization')}) want whole sequences "
                "without TransformerEngine; write false"
            )
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
