"""Model families, one file each. To add one: write its module and list it here; ``docs/models.md`` says how each is checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nemo_steerlm.core.errors import ConfigError, shown
from nemo_steerlm.formats.families import granite, llama, mistral, olmo2, phi3, qwen2, qwen3, smollm3
from nemo_steerlm.formats.families.base import Family, ModelConfig

_MODULES = llama, mistral, qwen2, qwen3, phi3, granite, olmo2, smollm3
FAMILIES: dict[str, Family] = {module.FAMILY.model_type: module.FAMILY for module in _MODULES}
"""By ``model_type``."""

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def family_of(config: Mapping[str, Any], source: str) -> Family:
    """The family of a ``config.json``. Raises ConfigError for a family that is not here, a mixture of experts among them."""
    kind = config.get("model_type")
    if any(config.get(key) for key in _EXPERTS) or (isinstance(kind, str) and kind.endswith("_moe")):
        raise ConfigError(f"{source}: {shown(kind)} is a mixture of experts, which cannot be converted; choose a dense model")
    if kind not in FAMILIES:
        raise ConfigError(f"{source}: model_type is {shown(kind)}; known families: {', '.join(FAMILIES)}")
    return FAMILIES[str(kind)]


def parameters(config: ModelConfig) -> int:
    """How many weights the model has."""
    return sum(math.prod(shape) for shape in FAMILIES[config.family].tensors(config).values())
