"""Faster imports of NeMo and transformers: without their optional dependencies, and without the garbage collector."""

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
"""By library: packages that it imports if they are installed, for features that this project does not use."""

UNASKED = {
    # Metrics, plots, tables, images, Chinese words.
    "nemo": ("torchmetrics", "sklearn", "scipy", "rouge_score", "matplotlib", "pandas", "datasets", "torchvision", "jieba"),
    "transformers": (),
}
"""By library: packages that it cannot be imported without, although this project uses nothing that needs them."""


@contextlib.contextmanager
def lean_imports(library: str) -> Iterator[None]:
    """Import ``library`` in the body of this context: ``OPTIONAL`` packages appear to be absent, ``UNASKED`` ones are stand-in modules.

    Both can be imported normally afterwards. If the library was imported before, it has already recorded which packages exist, so nothing
    is hidden then.

    Garbage collection is off meanwhile: its full collections traverse all imported objects again and again, which is a quarter of NeMo's
    import time, and free nothing. At the end those objects are frozen, so that later collections skip them.
    """
    first = library not in sys.modules
    hidden = [name for name in OPTIONAL[library] if first and name not in sys.modules]
    stand_ins = _StandIns([name for name in UNASKED[library] if first and name not in sys.modules])
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # makes an import raise ModuleNotFoundError
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
    """Metaclass of stand-in classes: they can be named and derived from, but not instantiated."""

    def __getattr__(cls, name: str) -> _Unavailable:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Unavailable(name, (), {})

    def __call__(cls, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise ImportError(f"{cls.__name__}: NeMo was imported without what this comes from; see {__name__}.UNASKED")


class _StandIn(types.ModuleType):
    """A module in which every name is a stand-in class."""

    def __getattr__(self, name: str) -> _Unavailable:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Unavailable(name, (), {})


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import hook that finds a stand-in for every module of the given packages."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = frozenset(packages)

    def find_spec(self, fullname: str, *_where: Any) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in self.packages:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> _StandIn:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to execute: attributes are made on access."""
