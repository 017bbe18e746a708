"""The two parts of every data set."""

from __future__ import annotations

from typing import Literal

Split = Literal["train", "val"]

SPLITS: tuple[Split, ...] = ("train", "val")
"""One to learn from, one to check on."""
