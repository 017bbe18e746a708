"""Judges that take no part in training, one file each: a file's name is the judge's name, its ``judge`` makes it.

A file defines ``judge() -> Judge``, or ``judge(argument: str) -> Judge`` where the name is written ``NAME:ARGUMENT``. Any other name with a
colon is ``MODULE:FUNCTION``, a user's own function from a text to a number. What is in this folder is registered.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable

from nemo_steerlm.core.errors import UsageError, nearest, shown

Judge = Callable[[str], float]
"""From an answer's text to a number in the judge's own unit."""

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))
"""The judges there are."""


def judge(name: str) -> Judge:
    """The judge called ``name``: ``words``, ``language:en``, ``regex:PATTERN``, ``MODULE:FUNCTION``.

    Raises UsageError for an unknown name, a missing or superfluous argument, and a function that cannot be imported.
    """
    first, colon, argument = name.partition(":")
    if first not in NAMES:
        if not colon:
            known = f"{', '.join(NAMES)}, or MODULE:FUNCTION"
            raise UsageError(f"unknown judge {shown(name)}: {nearest(first, NAMES)}known: {known}")
        return _checked(name, _function(first, argument))
    make = importlib.import_module(f"{__name__}.{first}").judge
    wanted = bool(inspect.signature(make).parameters)
    if wanted != bool(argument):
        raise UsageError(f"judge {shown(name)}: write {first}:ARGUMENT" if wanted else f"judge {shown(name)}: {first} takes no argument")
    found: Judge = make(argument) if wanted else make()
    return found


def _function(module: str, function: str) -> Judge:
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"judge {shown(f'{module}:{function}')}: {error}") from error
    if not callable(found):
        raise UsageError(f"judge {shown(f'{module}:{function}')} is no function")
    made: Judge = found
    return made


def _checked(name: str, function: Callable[[str], object]) -> Judge:
    """``function`` with what it returns looked at: a plot or an average of anything else fails far from its cause."""

    def judged(text: str) -> float:
        value = function(text)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UsageError(f"judge {shown(name)} gave {shown(value)} for {shown(text[:60])}; it must return a finite number")
        return float(value)

    return judged
