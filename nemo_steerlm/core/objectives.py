"""What a model can be trained to do: one entry per record type. Templates, readers, trainer and ``--help`` follow from this table.

Source: Dong et al. 2023, sections 3.1 (attribute prediction) and 3.3 (attribute-conditioned fine-tuning); the types' names are those of
NeMo v2.4.1, ``gpt_sft_chat_dataset.py``.
"""

from __future__ import annotations

from typing import Literal

import msgspec

ModelKind = Literal["value", "steer"]
"""A value model reads attributes (T2V); a steer model writes under them (V2T)."""


class Objective(msgspec.Struct, frozen=True, kw_only=True):
    """What a record of one type shows a model, and what of it the model learns."""

    summary: str
    """Its part of the help of ``--type``."""
    kind: ModelKind | None
    """What a model trained with it can do; None for a chat model without attributes."""
    label: Literal["before", "after", "absent"]
    """Where a turn's label stands: before its text, after it, or nowhere."""
    learns_label: bool = False
    """Loss on the labels of turns that are not masked."""
    learns_text: bool = False
    """Loss on the texts of turns that are not masked, but for the conversation's first turn."""
    loss: str = "nemo_steerlm.megatron.forward_steps:summed"
    """``MODULE:FUNCTION``: from the cross entropies ``[learned]`` of a micro batch, in nats, to the number that is minimised.

    Its gradient is divided by the number of learned tokens of the global batch. Validation always measures the cross entropy itself.
    """


PLAIN = Objective(summary="chat", kind=None, label="absent", learns_text=True)
"""That of records without a type."""

OBJECTIVES: dict[str, Objective] = {
    "TEXT_TO_VALUE": Objective(summary="value model", kind="value", label="after", learns_label=True),
    "VALUE_TO_TEXT": Objective(summary="SteerLM model", kind="steer", label="before", learns_text=True),
}
"""By the type of a record."""


def objective(mode: str | None) -> Objective:
    """That of records of type ``mode``; None is plain chat."""
    return PLAIN if mode is None else OBJECTIVES[mode]
