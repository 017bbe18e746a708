"""Run beside another transformers: its logits of ``IDS`` for a model folder, written to OUT.

Arguments: FOLDER, OUT, and for a random model, which is written to FOLDER, its family and its settings as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from tests.megatron.families import IDS, random_model

if __name__ == "__main__":
    folder, out, *made = sys.argv[1:]
    model = random_model(made[0], Path(folder), **json.loads(made[1])) if made else AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        save_file({"logits": model(IDS).logits.contiguous()}, out)
    print(type(model).__module__)
