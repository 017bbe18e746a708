"""Training speed and memory on this machine's GPU, against a plain transformers loop of the same shape in the same run: ``make bench-gpu``.

The larger shapes have few layers of the real width: a layer costs what it costs, so tokens/s of the whole depth follow. MFU counts six
operations a parameter of the layers and token, of the peak that ``--tflops`` states for dense bf16, by default the data sheet's.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nemo_steerlm.formats.tokenizer_files import nemo_tokenizer_config, write_tokenizer_files
from nemo_steerlm.megatron.distributed import make_trainer
from nemo_steerlm.megatron.gpt_sft import build_model
from nemo_steerlm.megatron.micro_batch import MicroBatch
from nemo_steerlm.training import optimizer
from nemo_steerlm.training.arithmetic import MCORE
from nemo_steerlm.training.flops import PEAKS, peak
from tests.inputs import STORIES

SHAPES = {
    # hidden, ffn, heads, groups, layers here, layers of the model, micro batch, width
    "135M": (576, 1536, 9, 3, 30, 30, 16, 1024),
    "1B": (2048, 8192, 32, 8, 16, 16, 8, 2048),
    "8B": (4096, 14336, 32, 8, 6, 32, 2, 4096),
}
VOCABULARY = 512
ADAM: dict[str, Any] = {"lr": 1e-5, "betas": (0.9, 0.98), "weight_decay": 0.01}
STEPS, WARM = 12, 4


def batch_of(rows: int, width: int, seed: int) -> MicroBatch:
    tokens = torch.randint(3, VOCABULARY, (rows, width + 1), generator=torch.Generator().manual_seed(seed))
    return MicroBatch(
        tokens=tokens[:, :-1].contiguous(),
        labels=tokens[:, 1:].contiguous(),
        position_ids=torch.arange(width).expand(rows, -1),
        loss_mask=torch.ones(rows, width, dtype=torch.bool),
        loss_scale=torch.tensor(1.0 / (rows * width)),
    )


def plain(shape: tuple[int, ...]) -> Any:
    """A loop as anybody would write it: bf16 weights and torch's fused AdamW, attention by torch's flash kernel."""
    hidden, ffn, heads, groups, layers, _, _, width = shape
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        num_hidden_layers=layers,
        max_position_embeddings=width,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).to("cuda", torch.bfloat16).train()
    adam = torch.optim.AdamW(model.parameters(), fused=True, **ADAM)

    def step(batch: MicroBatch) -> None:
        adam.zero_grad()
        logits = model(input_ids=batch["tokens"].cuda()).logits.float()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].cuda().flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()

    return step


def megatron(shape: tuple[int, ...], folder: Path) -> Any:
    """This project's step: bf16 weights, fp32 masters in Megatron-Core's distributed optimizer."""
    hidden, ffn, heads, groups, layers, _, rows, width = shape
    write_tokenizer_files(STORIES, folder)
    config = {
        "tokenizer": nemo_tokenizer_config(folder),
        "hidden_size": hidden,
        "ffn_hidden_size": ffn,
        "num_attention_heads": heads,
        "num_query_groups": groups,
        "num_layers": layers,
        "encoder_seq_length": width,
        "micro_batch_size": rows,
        "global_batch_size": rows,
        "precision": "bf16",
        "megatron_amp_O2": True,
        "optim": {"name": MCORE, **ADAM, "betas": list(ADAM["betas"])},
    }
    model = build_model(config, make_trainer(precision="bf16", gradient_clip_val=1.0))
    optimizer.set_up(model, STEPS)
    model.train()

    def step(batch: MicroBatch) -> None:
        for chunk in model.model:
            chunk.zero_grad_buffer()
        model._optimizer.zero_grad()
        model.run_micro_batches([batch], forward_only=False)
        model.reduce_gradients()
        model.clip_gradients(1.0)
        model.step_optimizer()

    return step


def measure(name: str, side: str, tflops: float) -> float:
    """Print and return tokens/s of one side."""
    shape = SHAPES[name]
    hidden, ffn, heads, groups, layers, depth, rows, width = shape
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        step = plain(shape) if side == "plain" else megatron(shape, Path(folder))
        for i in range(STEPS):
            if i == WARM:
                torch.cuda.synchronize()
                began = time.perf_counter()
            step(batch_of(rows, width, i))
        torch.cuda.synchronize()
    speed = (STEPS - WARM) * rows * width / (time.perf_counter() - began)
    parameters = layers * (2 * hidden * hidden * (1 + groups / heads) + 3 * hidden * ffn)
    whole = "" if layers == depth else f", {layers} of {depth} layers; {speed * layers / depth:.0f} tokens/s extrapolated to all"
    print(
        f"{name} {side}: {speed:.0f} tokens/s, MFU {6 * parameters * speed / tflops / 1e12:.2f}, "
        f"peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB{whole}",
        flush=True,
    )
    return speed


def main(tflops: float | None) -> None:
    """Print every shape, both sides. Without ``tflops``, of a GPU whose data sheet is not known, MFU is that of an H100."""
    device = torch.cuda.get_device_name()
    tflops = tflops or (peak(device) or PEAKS["H100"]) / 1e12
    print(f"{device}, torch {torch.__version__}, MFU of {tflops:.0f} TFLOP/s")
    for name in SHAPES:
        speeds = {side: measure(name, side, tflops) for side in ("plain", "megatron")}
        print(f"{name}: ratio {speeds['megatron'] / speeds['plain']:.2f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tflops", type=float)
    main(**vars(parser.parse_args()))
