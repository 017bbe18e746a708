"""Run in an environment with another transformers: how far the embedded engine's logits are from that library's own, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers

from nemo_steerlm.inference.blocks import Block
from nemo_steerlm.inference.causal_model import CausalModel

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    ids = torch.randint(3, 500, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits
    model = CausalModel(folder, device="cpu")
    cache = model.cache(2)
    found = []
    for start in (0, 25):  # the second block reads the first one's keys and values
        block = ids[:, start : start + 25]
        reads = [(row, i) for row in range(2) for i in range(block.shape[1])]
        logits = model.forward(cache, Block(block.tolist(), [start, start]), reads=reads)
        found.append(float((logits - expected[:, start : start + 25].flatten(0, 1)).abs().max()))
    print(json.dumps({"transformers": transformers.__version__, "differences": found}))
