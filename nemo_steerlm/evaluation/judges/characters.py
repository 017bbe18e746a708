"""Length in characters."""

from __future__ import annotations

from nemo_steerlm.evaluation.judges import Judge


def judge() -> Judge:
    """Unicode code points."""
    return lambda text: float(len(text))
