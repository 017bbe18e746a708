"""Random models of every family, and how far our logits are from those of transformers.

``python -m tests.megatron.families`` prints the table of ``docs/models.md``.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from nemo_steerlm.core.attributes import preset
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.template import ChatTokens
from nemo_steerlm.formats.families import FAMILIES
from nemo_steerlm.formats.tokenizer_files import nemo_tokenizer_config, write_tokenizer_files
from nemo_steerlm.inference import smollm3
from tests import inputs

smollm3.register()

POSITIONS = 200
SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rope_theta": 5000.0,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
OWN: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 12},
    "mistral": {"head_dim": 12, "sliding_window": 220},
    "qwen2": {"use_sliding_window": False},
    "qwen3": {"head_dim": 16},
    "phi3": {"sliding_window": 230},
    "granite": {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.6, "logits_scaling": 4.0},
    "olmo2": {},
    "smollm3": {"no_rope_layers": [1, 0]},
}
WINDOWS = {"mistral": 220, "phi3": 230}


def random_model(family: str, folder: Path, **settings: Any) -> torch.nn.Module:
    """A model of transformers with random weights, biases and norms among them, saved with stories260K's tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SIZES, **OWN[family], **settings})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    shutil.copy(inputs.STORIES / "tokenizer.model", folder)
    return model


IDS = torch.randint(3, 512, (2, POSITIONS), generator=torch.Generator().manual_seed(1))


def differences(family: str, folder: Path, *, tied: bool, expected: torch.Tensor | None = None) -> dict[str, float]:
    """How far logits are from transformers' in fp32 at most, over 2 x 200 positions, by what computed them.

    Makes a model in ``folder/source``, loads it into Megatron and writes it to ``folder/exported``, whose weights must be the source's.
    Engines of ours read both, in two blocks; OpenVINO's is one where that is installed. With ``expected``, another transformers' logits of
    ``IDS``, ``folder/source`` is there.
    """
    from nemo_steerlm.inference.causal_model import CausalModel
    from nemo_steerlm.inference.megatron_model import ServingModel
    from nemo_steerlm.megatron.gpt_sft import build_model
    from nemo_steerlm.megatron.hf_export import export_hf
    from nemo_steerlm.megatron.hf_import import load_hf_weights, model_config_from_hf

    source, exported = folder / "source", folder / "exported"
    if expected is None:
        with torch.no_grad():
            expected = random_model(family, source, tie_word_embeddings=tied)(IDS).logits
    write_tokenizer_files(source, folder / "tokenizer", ChatTokens().markers)
    megatron = build_model({**model_config_from_hf(source), "tokenizer": nemo_tokenizer_config(folder / "tokenizer")}).eval()
    load_hf_weights(megatron, source)
    with torch.no_grad():
        logits = megatron.model(input_ids=IDS, position_ids=torch.arange(POSITIONS).expand(2, -1), attention_mask=None)
    export_hf(megatron, exported, ModelInfo(kind="steer", attributes=preset("helpsteer")))
    original, written = load_file(source / "model.safetensors"), load_file(exported / "model.safetensors")
    assert set(written) == set(original)
    for name, tensor in original.items():
        assert torch.equal(written[name][: len(tensor)], tensor), name
    found = {"Megatron": logits, "embedded engine": in_two_blocks(CausalModel(exported, device="cpu"), IDS)}
    if importlib.util.find_spec("openvino"):
        from nemo_steerlm.inference.openvino import OpenVINOModel

        found["OpenVINO engine"] = in_two_blocks(OpenVINOModel(exported), IDS)
    megatron.transformer_config.apply_rope_fusion = False  # rows have positions of their own
    found["Megatron engine"] = in_two_blocks(ServingModel(megatron, sys.exit), IDS)
    return {name: float((each[..., :512] - expected).abs().max()) for name, each in found.items()}


def in_two_blocks(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits ``[2, positions, vocabulary]`` of ``ids``, whose second part is read beside the cache of the first."""
    from nemo_steerlm.inference.blocks import Block

    cache, parts = model.cache(2), []
    for start, block in ((0, ids[:, : POSITIONS - 60]), (POSITIONS - 60, ids[:, POSITIONS - 60 :])):
        reads = [(row, i) for row in range(2) for i in range(block.shape[1])]
        parts.append(model.forward(cache, Block(block.tolist(), [start, start]), reads=reads).view(2, block.shape[1], -1))
    return torch.cat(parts, dim=1)


def main() -> None:
    """Print the table."""
    rows = []
    for family, known in FAMILIES.items():
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            untied, tied = (differences(family, Path(folder), tied=t) for folder, t in ((one, False), (other, True)))
        columns = " | ".join(f"{untied[name]:.0e} / {tied[name]:.0e}" for name in untied)
        rows.append(f"| `{family}` | {columns} | {known.gguf or 'no'} |")
    print("| `model_type` | " + " | ".join(untied) + " | GGUF |")
    print("|---" * (len(untied) + 2) + "|")
    print("\n".join(rows))


if __name__ == "__main__":
    from nemo_steerlm.megatron import compat

    with compat.importing_nemo():
        main()
