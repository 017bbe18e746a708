"""Imports of NeMo, transformers and torch: thousands of modules and a million objects, most of which nothing here asks for."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator

OPTIONAL = {
    # Quantized models, checkpoints in object stores, losses of speech recognition, configurations rewritten from Python's syntax.
    "nemo": ("modelopt", "multistorageclient", "boto3", "numba", "libcst"),
    "transformers": ("sklearn", "torchvision", "PIL", "accelerate"),  # assisted decoding, images, models spread over devices
}
"""What a library imports wherever it is installed, as in NeMo's stack, for what this project does not ask of it."""


@contextlib.contextmanager
def lean_imports(library: str) -> Iterator[None]:
    """Import ``library`` within, the first time in this process: it does not find what is optional, and nothing is garbage-collected.

    Afterwards all is to be found again. A library that is imported already may have noted what it found, so then nothing is hidden.

    The collector would look at all that was imported so far whenever a quarter more has come: a quarter of NeMo's import time, for
    nothing that could be freed. Nor does it look at what lives at the end ever again.
    """
    hidden = [] if library in sys.modules else [name for name in OPTIONAL[library] if name not in sys.modules]
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
