"""Imports of NeMo, transformers and torch: thousands of modules and a million objects, most of which nothing here asks for."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator

OPTIONAL_OF_TRANSFORMERS = ("sklearn", "torchvision", "PIL", "accelerate")
"""What transformers imports wherever it is installed: for images, for models spread over devices, for assisted decoding."""


@contextlib.contextmanager
def lean_imports(*absent: str) -> Iterator[None]:
    """Import large libraries within: they do not find the ``absent`` ones, and nothing is garbage-collected.

    ``absent`` are packages that a library uses where they are installed, for what this project does not ask of it; NeMo's stack has all
    of them. Those that are imported already stay. Afterwards they are to be found again.

    The collector would look at all that was imported so far whenever a quarter more has come: a quarter of NeMo's import time, for
    nothing that could be freed. Nor does it look at what lives at the end ever again.
    """
    hidden = [name for name in absent if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # Python's own sign for a module that there is not
    gc.disable()
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        gc.freeze()
        gc.enable()
