"""Lexical variety."""

from __future__ import annotations

import re

from nemo_steerlm.evaluation.judges import Judge


def judge() -> Judge:
    """Distinct words over words, letter case aside; 0 for a text without words. It falls with length: compare texts of like length."""

    def ratio(text: str) -> float:
        words = re.findall(r"\w+", text.casefold())
        return len(set(words)) / len(words) if words else 0.0

    return ratio
