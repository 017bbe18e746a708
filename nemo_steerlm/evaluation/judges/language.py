"""Is a text in a language?"""

from __future__ import annotations

from pathlib import Path

from nemo_steerlm.core.errors import UsageError, nearest, shown
from nemo_steerlm.evaluation.judges import Judge


def judge(argument: str) -> Judge:
    """The probability that a text is in language ``argument`` (ISO 639-1), by langdetect; 0 for a text without letters.

    Raises:
        UsageError: If ``argument`` is no language that langdetect knows.
    """
    from langdetect import PROFILES_DIRECTORY, DetectorFactory, LangDetectException, detect_langs

    DetectorFactory.seed = 0  # the same text, the same number
    known = sorted(path.name for path in Path(PROFILES_DIRECTORY).iterdir())
    if argument not in known:
        raise UsageError(f"judge language: unknown language {shown(argument)}; {nearest(argument, known)}known: {', '.join(known)}")

    def probability(text: str) -> float:
        try:
            return float(next((found.prob for found in detect_langs(text) if found.lang == argument), 0.0))
        except LangDetectException:  # nothing in it that tells a language
            return 0.0

    return probability
