"""A user's own regular expression."""

from __future__ import annotations

import re

from nemo_steerlm.core.errors import UsageError, shown
from nemo_steerlm.evaluation.judges import Judge


def judge(argument: str) -> Judge:
    """How often the regular expression ``argument`` (Python's) matches in a text.

    Raises:
        UsageError: If ``argument`` is no regular expression.
    """
    try:
        pattern = re.compile(argument)
    except re.error as error:
        raise UsageError(f"judge regex: {shown(argument)} is no regular expression: {error}") from error
    return lambda text: float(sum(1 for _ in pattern.finditer(text)))
