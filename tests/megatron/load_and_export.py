"""Run by torchrun: load Hugging Face folders under TP=2 and PP=2, and write each back to OUT/TP=2, OUT/PP=2. Arguments: OUT, sources."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from megatron.core import parallel_state

from nemo_steerlm.core.template import ChatTokens
from nemo_steerlm.formats.tokenizer_files import nemo_tokenizer_config, write_tokenizer_files
from nemo_steerlm.megatron.distributed import make_trainer
from nemo_steerlm.megatron.gpt_sft import build_model
from nemo_steerlm.megatron.hf_export import export_hf
from nemo_steerlm.megatron.hf_import import load_hf_weights, model_config_from_hf

LAYOUTS = {"TP=2": (2, 1), "PP=2": (1, 2)}


def main(tensor: int, pipeline: int, out: Path, source: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer_files(source, folder, ChatTokens().markers)
        config = {
            **model_config_from_hf(source),
            "tokenizer": nemo_tokenizer_config(folder),
            "tensor_model_parallel_size": tensor,
            "pipeline_model_parallel_size": pipeline,
        }
        model = build_model(config, make_trainer(devices=2))
        load_hf_weights(model, source)
        export_hf(model, out / source.name)


if __name__ == "__main__":
    out, *sources = map(Path, sys.argv[1:])
    for name, layout in LAYOUTS.items():
        parallel_state.destroy_model_parallel()
        for source in sources:
            main(*layout, out / name, source)
