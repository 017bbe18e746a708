"""Reading difficulty as an American school grade (Kincaid et al. 1975)."""

from __future__ import annotations

import re

from nemo_steerlm.evaluation.judges import Judge


def judge() -> Judge:
    """``0.39 words per sentence + 11.8 syllables per word - 15.59``; 0 for a text without words. Syllables of English, by pyphen."""
    import pyphen

    dictionary = pyphen.Pyphen(lang="en_US")

    def grade(text: str) -> float:
        words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", text)
        if not words:
            return 0.0
        sentences = max(1, len([s for s in re.split(r"[.!?]+", text) if re.search(r"\w", s)]))
        syllables = sum(len(dictionary.positions(word)) + 1 for word in words)
        return 0.39 * len(words) / sentences + 11.8 * syllables / len(words) - 15.59

    return grade
