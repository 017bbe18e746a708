"""The embedded engine: an exported model folder, run by transformers on CPU (in fp32, or bf16 where model and CPU have it) or one GPU."""

from __future__ import annotations

from pathlib import Path

from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.tokenization import load_tokenizer
from nemo_steerlm.inference.batching import BatchedEngine
from nemo_steerlm.inference.causal_model import CausalModel


class HuggingFaceEngine(BatchedEngine):
    """See ``Engine``."""

    def __init__(self, folder: Path, *, device: str | None = None, max_rows: int = 32) -> None:
        """Load ``folder``. Raises UsageError where it is no exported model, ConfigError where its labels cannot be scored."""
        info = ModelInfo.load(folder)
        super().__init__(info, load_tokenizer(folder), CausalModel(folder, device=device), max_rows=max_rows)
