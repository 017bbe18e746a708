"""What share of its GPUs' arithmetic a training uses (MFU): operations by the sizes of its matrices, peaks by the vendor's data sheets.

Counted are products with weights, two operations each: forward, for the gradient of what goes in, and for that of the weights, which
frozen ones spare. What grows with a record's length alone, attention's own products, is left out, and so is what recomputation repeats.
"""

from __future__ import annotations

import dataclasses

from omegaconf import DictConfig

from nemo_steerlm.megatron.model_config import Parallelism
from nemo_steerlm.training.memory import matrix_parameters

PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "GH200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A40": 150e12,
    "A30": 165e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
}
"""Operations a second of dense bf16 products with fp32 sums, by words of the name that CUDA gives a GPU; the first that fits counts."""


def peak(name: str) -> float | None:
    """Of the GPU that CUDA calls ``name``; None for one whose data sheet is not here."""
    words = name.replace("-", " ").split()
    return next((value for known, value in PEAKS.items() if set(known.split()) <= set(words)), None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """Floating-point operations of a training's products."""

    token: float
    """For each token, in the layers."""
    learned: float
    """For each learned token beside, in the projection onto the vocabulary."""

    @classmethod
    def of(cls, model: DictConfig, vocabulary: int) -> Operations:
        """Of a training of ``model`` (NeMo's config), with adapters or of all weights."""
        layers, adapted = matrix_parameters(model, Parallelism(world_size=1, tensor=1, pipeline=1))
        adapters = model.peft.peft_scheme not in (None, "none")
        each = 4 if adapters else 6
        return cls(token=each * layers + (6 * adapted if adapters else 0), learned=float(each * model.hidden_size * vocabulary))

    def of_step(self, tokens: float, learned: float) -> float:
        """Of a step over so many tokens, of which so many are learned."""
        return self.token * tokens + self.learned * learned
