"""Length in words."""

from __future__ import annotations

from nemo_steerlm.evaluation.judges import Judge


def judge() -> Judge:
    """Words between white space."""
    return lambda text: float(len(text.split()))
