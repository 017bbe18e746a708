"""The OpenVINO engine: an exported model folder on a CPU, its layers compiled by OpenVINO, the loop of every other engine around them.

The layers are transformers' own, traced once per start. Keys and values stay in our cache, an input of the compiled layers, because its
rows join, leave and are read in part, which OpenVINO's own state has no way for. Everything is computed in fp32.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers.cache_utils import Cache

# Its converter reports every import and conversion to Intel unless the telemetry package is missing. It works without that package.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino  # noqa: E402

from nemo_steerlm.core.model_info import ModelInfo  # noqa: E402
from nemo_steerlm.core.tokenization import load_tokenizer  # noqa: E402
from nemo_steerlm.inference.batching import BatchedEngine  # noqa: E402
from nemo_steerlm.inference.blocks import NO_LAYERS, Block, RowCache, cache_arguments  # noqa: E402
from nemo_steerlm.inference.causal_model import CausalModel  # noqa: E402
from nemo_steerlm.inference.registry import EngineOptions  # noqa: E402


class OpenVINOEngine(BatchedEngine):
    """See ``Engine``."""

    def __init__(self, folder: Path, options: EngineOptions) -> None:
        """Load and compile an exported model.

        Raises:
            UsageError: If ``folder`` is no exported model, or has positions for fewer tokens than ``options`` want.
            ConfigError: If it is a value model whose labels cannot be scored.
        """
        super().__init__(ModelInfo.load(folder), load_tokenizer(folder), OpenVINOModel(folder), options)


def load_engine(path: Path, options: EngineOptions) -> OpenVINOEngine:
    """See ``registry.Loader``."""
    return OpenVINOEngine(path, options)


class OpenVINOModel(CausalModel):
    """See BlockModel. The output layer stays torch's: it reads few rows, and often few of their columns."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, device="cpu", dtype=torch.float32)
        self._layers: int = self.model.config.num_hidden_layers
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",  # bfloat16 by default where the CPU has it
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self._request = openvino.Core().compile_model(self._traced(), "CPU", settings).create_infer_request()
        # The compiled layers have weights of their own.
        self.model = self.body = None

    @torch.inference_mode()
    def _traced(self) -> Any:
        """The layers as a graph of any number of rows, new tokens and columns: (hidden states read, then keys and values of each layer)."""
        past = [torch.zeros(2, self.kv_heads, 5, self.head_size) for _ in range(2 * self._layers)]
        ids = torch.zeros(2, 3, dtype=torch.long)
        example = (ids, ids, torch.zeros(2, 1, 3, 8), torch.tensor([0]), *past)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # branches on sizes: the example takes the general one
            graph = openvino.convert_model(_Layers(self.body), example_input=example)
        tokens, positions, mask, reads, *rest = graph.inputs
        shapes = {tokens: [-1, -1], positions: [-1, -1], mask: [-1, 1, -1, -1], reads: [-1]}
        graph.reshape(shapes | {part: [-1, self.kv_heads, -1, self.head_size] for part in rest})
        return graph

    def _hidden(self, cache: RowCache, block: Block, mask: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """See CausalModel."""
        rows, new = block.tokens.shape
        past = self._past(cache, rows)
        # A cache's buffers have columns that other rows see, and some to grow into.
        unused = mask.new_full((rows, 1, new, past[0].shape[2] - cache.start), torch.finfo(mask.dtype).min)
        mask = torch.cat([mask[..., : cache.start], unused, mask[..., cache.start :]], dim=3)
        inputs = (block.tokens, block.positions, mask, where[:, 0] * new + where[:, 1], *past)
        outputs = self._request.infer([t.contiguous().numpy() for t in inputs], share_inputs=True, share_outputs=True)
        hidden, *fresh = (torch.from_numpy(outputs[i]) for i in range(len(outputs)))
        for layer in range(self._layers):
            cache.update(fresh[2 * layer], fresh[2 * layer + 1], layer)
        return hidden

    def _past(self, cache: RowCache, rows: int) -> list[torch.Tensor]:
        """Keys and values of the active rows, layer after layer; one column at least, since empty tensors have no defined product."""
        if not cache.start:
            return [torch.zeros(rows, self.kv_heads, 1, self.head_size)] * (2 * self._layers)
        found = [tensor for pair in zip(cache.keys, cache.values, strict=True) for tensor in pair]
        return [tensor[: cache.rows] if cache.active is None else tensor[cache.active] for tensor in found]


class _Layers(torch.nn.Module):
    """What is traced."""

    def __init__(self, body: torch.nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(
        self, tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, reads: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Hidden states at ``reads`` (row * new + column), then the new keys and values of every layer."""
        cache = _Past(past)
        hidden = self.body(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=mask,
            **cache_arguments(self.body, cache, torch.arange(tokens.shape[1])),
        ).last_hidden_state
        return hidden.flatten(0, 1)[reads], *cache.fresh


class _Past(Cache):
    """The cache that the traced layers see."""

    def __init__(self, past: tuple[torch.Tensor, ...]) -> None:
        super().__init__(**NO_LAYERS)
        self._past = past
        self.fresh: list[torch.Tensor] = []

    def get_seq_length(self, layer_idx: int | None = 0) -> int:  # noqa: ARG002  transformers' signature
        """Not looked at: positions and mask are given."""
        return 0

    def get_max_cache_shape(self) -> int | None:
        """No limit."""
        return None

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_more: Any,
        **_named: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Everything so far; what is new goes out as well."""
        self.fresh += [key_states, value_states]
        keys, values = self._past[2 * layer_idx : 2 * layer_idx + 2]
        return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)
