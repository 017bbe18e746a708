"""Print how many threads gloo has before and after a checkpoint of adapters, whose plan is large enough for it to copy in parallel.

A thread that OpenMP starts has the name of the one that it is started for. Arguments: a tokenizer, a folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf

from nemo_steerlm.megatron import lora
from nemo_steerlm.megatron.gpt_sft import build_model
from nemo_steerlm.training import checkpoints, optimizer
from nemo_steerlm.training.config import CONF


def threads() -> int:
    return sum("gloo" in path.read_text() for path in Path("/proc/self/task").glob("*/comm"))


if __name__ == "__main__":
    settings = OmegaConf.load(CONF / "gpt_sft.yaml").model
    settings.peft.lora_tuning.target_modules = ["all"]
    model = build_model(
        {
            "tokenizer": {"library": "sentencepiece", "model": sys.argv[1]},
            "num_layers": 32,
            "hidden_size": 8,
            "ffn_hidden_size": 16,
            "num_attention_heads": 1,
            "num_query_groups": 1,
            "peft": settings.peft,
            "optim": {**settings.optim, "name": "adamw"},
        }
    )
    lora.add(model)
    optimizer.set_up(model, 1)
    torch.set_num_threads(2)
    torch.ones(1_000_000).exp()  # starts this thread's own
    before = threads()
    checkpoints.save(Path(sys.argv[2]), checkpoints.TrainingState(fingerprint={}), optimizer.sharded_state(model, loading=False), keep=1)
    print(before, threads(), torch.get_num_threads())
