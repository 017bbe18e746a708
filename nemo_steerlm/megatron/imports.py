"""Imports of NeMo, transformers and torch: thousands of modules and a million objects, most of which nothing here asks for."""

from __future__ import annotations

import contextlib
import gc
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

OPTIONAL = {
    # Quantized models, checkpoints in object stores, losses of speech recognition, configurations rewritten from Python's syntax, encodings
    # guessed from bytes.
    "nemo": ("modelopt", "multistorageclient", "boto3", "numba", "libcst", "chardet"),
    # Assisted decoding, objects found in images, images, models spread over devices, encodings.
    "transformers": ("sklearn", "scipy", "torchvision", "PIL", "accelerate", "chardet"),
}
"""What a library imports wherever it is installed, as in NeMo's stack, for what this project does not ask of it."""

UNASKED = {
    # Metrics, plots, tables, images, Chinese words.
    "nemo": ("torchmetrics", "sklearn", "scipy", "rouge_score", "matplotlib", "pandas", "datasets", "torchvision", "jieba"),
    "transformers": (),
}
"""What it cannot be imported without, although nothing of it is used here."""


@contextlib.contextmanager
def lean_imports(library: str) -> Iterator[None]:
    """Import ``library`` within, the first time in this process: without what is optional, with stand-ins for what nobody asks of it.

    Nothing is garbage-collected meanwhile. Afterwards all is to be found again. A library that is imported already may have noted what it
    found, so then nothing is hidden.

    The collector would look at all that was imported so far whenever a quarter more has come: a quarter of NeMo's import time, for
    nothing that could be freed. Nor does it look at what lives at the end ever again.
    """
    first = library not in sys.modules
    hidden = [name for name in OPTIONAL[library] if first and name not in sys.modules]
    stand_ins = _StandIns([name for name in UNASKED[library] if first and name not in sys.modules])
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # Python's own sign for a module that there is not
    sys.meta_path.insert(0, stand_ins)
    gc.disable()
    try:
        yield
    finally:
        sys.meta_path.remove(stand_ins)
        for name in hidden + [name for name, module in list(sys.modules.items()) if isinstance(module, _StandIn)]:
            del sys.modules[name]
        gc.freeze()
        gc.enable()


class _Unavailable(type):
    """Of classes that stand in for whatever is taken out of a module: to be named, to derive from, not to be used."""

    def __getattr__(cls, name: str) -> _Unavailable:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Unavailable(name, (), {})

    def __call__(cls, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise ImportError(f"{cls.__name__}: NeMo was imported without what this comes from; see {__name__}.UNASKED")


class _StandIn(types.ModuleType):
    """A module that has everything."""

    def __getattr__(self, name: str) -> _Unavailable:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Unavailable(name, (), {})


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds stand-ins for packages and all that is in them."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = frozenset(packages)

    def find_spec(self, fullname: str, *_where: Any) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in self.packages:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> _StandIn:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing to it."""
