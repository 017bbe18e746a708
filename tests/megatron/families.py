"""Random models of every family, and how far our logits are from those of transformers.

``python -m tests.megatron.families`` prints the table of ``docs/models.md``.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from nemo_steerlm.core.attributes import preset
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.template import ChatTokens
from nemo_steerlm.formats.families import FAMILIES
from nemo_steerlm.formats.tokenizer_files import nemo_tokenizer_config, write_tokenizer_files
from tests import inputs

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


class Differences(NamedTuple):
    """The largest difference of a logit from transformers' in fp32, over 2 x 200 positions."""

    megatron: float
    embedded: float
    """Of the embedded engine, which reads the export."""


def differences(family: str, folder: Path, *, tied: bool) -> Differences:
    """Make a model in ``folder/source``, load it into Megatron and write it to ``folder/exported``, whose weights must be the source's."""
    from nemo_steerlm.inference.blocks import Block
    from nemo_steerlm.inference.causal_model import CausalModel
    from nemo_steerlm.megatron.gpt_sft import build_model
    from nemo_steerlm.megatron.hf_export import export_hf
    from nemo_steerlm.megatron.hf_import import load_hf_weights, model_config_from_hf

    source, exported = folder / "source", folder / "exported"
    reference = random_model(family, source, tie_word_embeddings=tied)
    write_tokenizer_files(source, folder / "tokenizer", ChatTokens().markers)
    megatron = build_model({**model_config_from_hf(source), "tokenizer": nemo_tokenizer_config(folder / "tokenizer")}).eval()
    load_hf_weights(megatron, source)
    ids = torch.randint(3, 512, (2, POSITIONS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(ids).logits
        logits = megatron.model(input_ids=ids, position_ids=torch.arange(POSITIONS).expand(2, -1), attention_mask=None)
    export_hf(megatron, exported, ModelInfo(kind="steer", attributes=preset("helpsteer")))
    original, written = load_file(source / "model.safetensors"), load_file(exported / "model.safetensors")
    assert set(written) == set(original)
    for name, tensor in original.items():
        assert torch.equal(written[name][: len(tensor)], tensor), name
    model = CausalModel(exported, device="cpu")
    read = model.forward(model.cache(2), Block(ids.tolist(), [0, 0]), reads=[(row, i) for row in range(2) for i in range(POSITIONS)])
    return Differences(float((logits[..., :512] - expected).abs().max()), float((read[:, :512] - expected.flatten(0, 1)).abs().max()))


def main() -> None:
    """Print the table."""
    print("| `model_type` | Megatron, untied / tied | export in the embedded engine, untied / tied | GGUF |")
    print("|---|---|---|---|")
    for family, known in FAMILIES.items():
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            untied, tied = (differences(family, Path(folder), tied=t) for folder, t in ((one, False), (other, True)))
        engine = f"{untied.embedded:.0e} / {tied.embedded:.0e}"
        print(f"| `{family}` | {untied.megatron:.0e} / {tied.megatron:.0e} | {engine} | {known.gguf or 'no'} |")


if __name__ == "__main__":
    from nemo_steerlm.megatron import compat

    with compat.importing_nemo():
        main()
