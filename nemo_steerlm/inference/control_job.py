"""What a SteerLM model in training is asked, to choose the step at which it steers best: the file of ``control_error``. Nothing heavy."""

from __future__ import annotations

from typing import Any

import msgspec


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One answer to generate, and what is to be read in it."""

    conversation: dict[str, Any]
    """A record that ends with the turn to answer."""
    label: str
    attribute: str
    """The attribute whose level is varied."""
    level: int
    seed: int


class ControlJob(msgspec.Struct, frozen=True, kw_only=True):
    """Held-out prompts under every level of every steered attribute, and the value model that reads the answers."""

    value_model: str
    """Path of its exported folder."""
    asked: list[Asked]
    max_tokens: int
    temperature: float
    top_k: int
