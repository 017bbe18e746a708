"""Adapters as PEFT keeps them, for engines that serve them beside the model that they were trained on.

NeMo has one adapter for queries, keys and values, and one for gate and up: of PEFT's, those have the inner matrix in common, and each its
rows of the outer one. Rows of tokens that were added to the vocabulary come along (``trainable_token_indices``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from megatron.core import parallel_state
from safetensors.torch import save_file
from torch import Tensor

from nemo_steerlm.core.files import atomic_write, default_mode
from nemo_steerlm.formats.families.base import ModelConfig
from nemo_steerlm.formats.hf_config import config_from_nemo
from nemo_steerlm.megatron import hf_import as layout
from nemo_steerlm.megatron.hf_export import unfused
from nemo_steerlm.megatron.lora import ADAPTED, gathered

_PREFIX = "base_model.model."
_TOKENS = {"model.embed_tokens.weight": "embed_tokens", "lm_head.weight": "lm_head"}
"""Weights of an exported model that have a row for each token, and PEFT's names of their modules."""
README = """\
# Adapters of the model in the folder above

For PEFT, beside the model that they were trained on ({base}). The tokenizer is the one above; where the base has fewer than {tokens}
rows of embeddings, it gets them first:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("BASE")
if base.get_input_embeddings().num_embeddings < {tokens}:
    base.resize_token_embeddings({tokens})
model = PeftModel.from_pretrained(base, "adapter")
```

{rows}
"""


class Adapter(NamedTuple):
    """What training added to a model."""

    settings: dict[str, Any]
    """``adapter_config.json``."""
    tensors: dict[str, Tensor]
    tokens: tuple[int, ...]
    """Added tokens."""

    def noting_rows(self, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """``tensors`` of the exported model as they are, whose rows of added tokens are remembered."""
        for name, tensor in tensors:
            if self.tokens and name in _TOKENS:
                module = name.removesuffix(".weight")
                self.tensors[f"{_PREFIX}{module}.token_adapter.trainable_tokens_delta"] = tensor[list(self.tokens)].clone()
                self.settings["trainable_token_indices"] = {
                    **(self.settings["trainable_token_indices"] or {}),
                    _TOKENS[name]: list(self.tokens),
                }
            yield name, tensor

    def save(self, folder: Path, config: ModelConfig) -> None:
        """Write it for PEFT."""
        folder.mkdir()
        save_file({name: t.detach().cpu().contiguous() for name, t in self.tensors.items()}, folder / "adapter_model.safetensors")
        (folder / "adapter_model.safetensors").chmod(default_mode())
        with atomic_write(folder / "adapter_config.json") as file:
            file.write(json.dumps(self.settings, indent=2) + "\n")
        rows = "vLLM's `--lora-modules` takes it as well."
        if self.tokens:
            rows = (
                f"Engines without `trainable_token_indices` lack the {len(self.tokens)} tokens that were added: give them the merged model."
            )
        with atomic_write(folder / "README.md") as file:
            base = self.settings["base_model_name_or_path"] or "a model with random weights"
            file.write(README.format(base=base, tokens=config.vocab_size, rows=rows))


def peft_adapter(model: Any, base: str | None, tokens: Sequence[int]) -> Adapter | None:
    """The adapters of ``model``, before they are merged. Every rank calls this; None but on rank 0.

    ``base`` names what was trained; ``tokens`` are those that it lacks, whose rows ``Adapter.noting_rows`` finds.
    """
    config, tuning = config_from_nemo(model.cfg, model.tokenizer.vocab_size), model.cfg.peft.lora_tuning
    mine = {name: (inner.cpu(), outer.cpu()) for name, inner, outer in _whole(model)}
    speaks = parallel_state.get_tensor_model_parallel_rank() == 0 and parallel_state.get_data_parallel_rank() == 0
    everyone: list[Any] | None = [None] * torch.distributed.get_world_size() if torch.distributed.get_rank() == 0 else None
    torch.distributed.gather_object(mine if speaks else {}, everyone)
    if everyone is None:
        return None
    tensors: dict[str, Tensor] = {}
    for name, (inner, outer) in sorted(item for stage in everyone for item in stage.items()):
        _, number, part = name.split(".", 2)
        for place, rows in unfused(part, outer, config):
            prefix = f"{_PREFIX}model.layers.{number}.{place}"
            tensors |= {f"{prefix}.lora_A.weight": inner.clone(), f"{prefix}.lora_B.weight": rows.clone()}
    layers = tuning.layer_selection
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": tuning.adapter_dim,
        "lora_alpha": tuning.alpha,
        "lora_dropout": tuning.adapter_dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted({name.split(".")[-3] for name in tensors}),
        "layers_to_transform": None if layers is None else [number - 1 for number in layers],
        "layers_pattern": None if layers is None else "layers",
        "trainable_token_indices": None,
    }
    return Adapter(settings, tensors, tuple(tokens))


def _whole(model: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Of each adapter of this stage: what it adapts, and its matrices ``[rank, in]`` and ``[out, rank]``, whole."""
    for gpt in layout.gpt_modules(model):
        for layer in gpt.decoder.layers:
            for module_name, module in layer.named_modules():
                for name, adapter in (getattr(module, "adapter_layer", None) or {}).items():
                    inner, outer = adapter.linear_in.weight.detach(), adapter.linear_out.weight.detach()
                    inner = gathered(inner, dim=1) if adapter.input_is_parallel else gathered(inner)
                    yield f"layers.{layer.layer_number - 1}.{module_name}.{ADAPTED[name]}.weight", inner.float(), gathered(outer).float()
