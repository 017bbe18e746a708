"""The embedded engine: an exported model folder, run by transformers on a GPU or a CPU (there in bf16 if model and CPU support it)."""

from __future__ import annotations

from pathlib import Path

from nemo_steerlm.core.errors import ConfigError
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.tokenization import load_tokenizer
from nemo_steerlm.inference.batching import BatchedEngine
from nemo_steerlm.inference.causal_model import CausalModel
from nemo_steerlm.inference.registry import EngineOptions


class HuggingFaceEngine(BatchedEngine):
    """See ``Engine``."""

    def __init__(self, folder: Path, options: EngineOptions | None = None) -> None:
        """Load an exported model.

        Raises:
            UsageError: If ``folder`` is no exported model, or has positions for fewer tokens than ``options`` want.
            ConfigError: If it is a value model whose labels cannot be scored.
        """
        options = options or EngineOptions()
        super().__init__(ModelInfo.load(folder), load_tokenizer(folder), CausalModel(folder, device=options.device), options)


def load_engine(path: Path, options: EngineOptions) -> HuggingFaceEngine:
    """See ``registry.Loader``.

    Raises:
        ConfigError: If ``options`` spread the model over several processes.
    """
    if max(options.tensor, options.pipeline, options.devices, options.nodes) > 1:
        raise ConfigError(f"{path}: a model folder is served by one process; give the .nemo for tensor and pipeline parallelism")
    return HuggingFaceEngine(path, options)
