"""Training speed on this machine: Megatron's model against a plain Hugging Face loop, in turn, step by step.

Same shape, weights, batch, precision (fp32; and torch's autocast to bf16, where the CPU has instructions for it), loss on every token,
clipping and optimizer (torch's fused AdamW). Every token is learned, which is the hard case: where a loss mask leaves tokens out,
Megatron's side computes no logits for them and the plain loop does. In one batch all rows are as long and no two begin alike; in the other
they are records as the quickstart's, whose lengths differ and whose beginning is common, which the plain loop pads and Megatron's packs.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nemo_steerlm.formats.tokenizer_files import nemo_tokenizer_config, write_tokenizer_files
from nemo_steerlm.megatron.cpu import multiplies_in_bf16
from nemo_steerlm.megatron.distributed import make_trainer
from nemo_steerlm.megatron.gpt_sft import build_model
from nemo_steerlm.megatron.hf_import import load_hf_weights, model_config_from_hf
from nemo_steerlm.megatron.packing import Packing
from nemo_steerlm.training import optimizer
from nemo_steerlm.training.batches import MicroBatch
from tests.inputs import STORIES

SMOLLM2_135M = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 512,
}
"""SmolLM2-135M's layers with stories260K's vocabulary: 106 M parameters."""

SMALL = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 512,
}

BATCH, LENGTH, CLIP = 8, 64, 1.0
OPTIMIZER: dict[str, Any] = {"lr": 1e-5, "betas": (0.9, 0.98), "weight_decay": 0.01}


def random_batch(vocabulary: int, seed: int, *, records: bool) -> MicroBatch:
    """One micro batch, as the collator makes them and both sides read it; of ``records`` 16 tokens are common, and 14 to 48 are not."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, vocabulary, (BATCH, LENGTH + 1), generator=generator)
    lengths = [LENGTH] * BATCH
    if records:
        tokens[:, :16] = tokens[0, :16]
        lengths = torch.randint(30, LENGTH + 1, (BATCH,), generator=generator).tolist()
    width = max(lengths)
    mask = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
    batch = MicroBatch(
        tokens=tokens[:, :width].contiguous(),
        labels=tokens[:, 1 : width + 1].contiguous(),
        position_ids=torch.arange(width).expand(BATCH, -1),
        loss_mask=mask,
        loss_scale=torch.tensor(1.0 / sum(lengths)),
    )
    batch.packing = Packing.of(batch["tokens"], lengths)
    return batch


def plain_step(model: LlamaForCausalLM, *, bf16: bool) -> Callable[[MicroBatch], float]:
    """One step of a loop as anybody would write it."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, **OPTIMIZER)

    def step(batch: MicroBatch) -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(input_ids=batch["tokens"]).logits.float()
        labels = batch["labels"].masked_fill(~batch["loss_mask"], -100)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return loss.item()

    return step


def megatron_step(model: Any) -> Callable[[MicroBatch], float]:
    """One step of ``training_loop.Training``, without its bookkeeping."""

    def step(batch: MicroBatch) -> float:
        model._optimizer.zero_grad()
        results = model.run_micro_batches([batch], forward_only=False)
        model.reduce_gradients()
        model.clip_gradients(CLIP)
        model._optimizer.step()
        return float(results[0]["loss_sum"] * batch["loss_scale"])

    return step


def compare(name: str, shape: dict[str, int], steps: int, folder: Path, *, bf16: bool, records: bool) -> None:
    """Run both in turn and print tokens/s and ratios. Raises AssertionError where the losses part."""
    torch.manual_seed(0)
    plain = LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2))
    plain.save_pretrained(folder)
    write_tokenizer_files(STORIES, folder)
    config = {
        **model_config_from_hf(folder),
        "tokenizer": nemo_tokenizer_config(folder),
        "optim": {"name": "adamw", **OPTIMIZER, "betas": list(OPTIMIZER["betas"])},
    }
    megatron = build_model(config, make_trainer())
    load_hf_weights(megatron, folder)
    megatron.train()
    megatron.bf16_products = bf16
    optimizer.set_up(megatron, steps)
    sides = {"plain": plain_step(plain.train(), bf16=bf16), "megatron": megatron_step(megatron)}
    spent: dict[str, list[float]] = {side: [] for side in sides}
    losses: dict[str, float] = {}
    for i in range(steps + 1):
        batch = random_batch(shape["vocab_size"], seed=i, records=records)
        tokens = int(batch["loss_mask"].sum())
        for side, step in list(sides.items())[:: 1 if i % 2 else -1]:
            began = time.perf_counter()
            losses[side] = step(batch)
            if i:  # the first step allocates
                spent[side].append((time.perf_counter() - began) / tokens)
        assert abs(losses["plain"] - losses["megatron"]) < 1e-2, losses
    speeds = {side: 1 / statistics.median(seconds) for side, seconds in spent.items()}
    ratios = sorted(a / b for a, b in zip(spent["plain"], spent["megatron"], strict=True))
    print(
        f"{name}, {'bf16' if bf16 else 'fp32'}, {'records' if records else 'all alike'}: "
        f"plain {speeds['plain']:.0f} tokens/s, Megatron {speeds['megatron']:.0f} (medians); "
        f"ratio min {ratios[0]:.2f}, median {statistics.median(ratios):.2f}, max {ratios[-1]:.2f} over {steps} steps"
    )


def main(*, steps: int = 10, shapes: str = "all") -> None:
    """Print both shapes in each precision, on both kinds of batches."""
    for name, shape in {"small": SMALL, "SmolLM2-135M": SMOLLM2_135M}.items():
        for bf16, records in itertools.product((False, True)[: 1 + multiplies_in_bf16()], (False, True)):
            if shapes in ("all", name):
                with tempfile.TemporaryDirectory() as folder:
                    compare(name, shape, steps, Path(folder), bf16=bf16, records=records)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--shapes", default="all", choices=("all", "small", "SmolLM2-135M"))
    main(**vars(parser.parse_args()))
