"""Reading a checkpoint that somebody else wrote: its pickles may hold tensors and what describes them, and nothing that runs.

torch's distributed checkpoints are pickles in three places: ``common.pt``, ``.metadata``, and every tensor. NeMo 2.4.1 and megatron-core
0.13.1 read the first with ``torch.load(weights_only=False)``, torch 2.14.1 the second with ``pickle.load``. Within ``weights_only`` neither
can name a class or function that is not on a list. Remove when they do the same.
"""

from __future__ import annotations

import contextlib
import enum
import io
import pickle
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem

from nemo_steerlm.core.errors import DataError, Where, shown

_METADATA = frozenset(
    {
        *(
            ("torch.distributed.checkpoint.metadata", name)
            for name in (
                "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING",
                "MetadataIndex", "ChunkStorageMetadata", "StorageMeta",
            )
        ),
        *(("torch.distributed.checkpoint.planner", name) for name in ("TensorWriteData", "WriteItemType", "WriteItem", "SavePlan")),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("megatron.core.dist_checkpointing.strategies.torch", "MCoreSavePlan"),
        ("torch.serialization", "_get_layout"),
        ("torch", "Size"),
        ("torch", "device"),
        ("collections", "OrderedDict"),
    }
)  # fmt: skip
"""What the description of a checkpoint is made of; the types of numbers besides."""

_WEIGHTS = (io.BytesIO,)
"""What weights may hold besides tensors and plain values: TransformerEngine keeps its scales in such a buffer."""


def _member(kind: Any, name: str) -> enum.Enum:
    """A member of an enumeration, which some Pythons, 3.11.2 among them, pickle as ``getattr(enumeration, name)``.

    Raises:
        UnpicklingError: For an attribute of anything else.
    """
    if not (isinstance(kind, type) and issubclass(kind, enum.Enum) and name in kind.__members__):
        raise pickle.UnpicklingError("builtins.getattr")
    return kind[name]


class _Description(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if (module, name) not in _METADATA and not (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


def _description(file: Any) -> Any:
    """What ``pickle.load`` gives for ``.metadata``, if it describes files of its own folder. Raises UnpicklingError."""
    description = _Description(file).load()
    for info in (description.storage_data or {}).values():
        name = info.relative_path
        if name != Path(name).name or name in (".", "..") or getattr(info, "transform_descriptors", None):
            raise pickle.UnpicklingError(f"a file elsewhere, {shown(name)}")
    return description


@contextlib.contextmanager
def weights_only(path: str | Path) -> Iterator[None]:
    """Read weights of ``path`` within. Raises DataError naming what they hold besides."""
    refused: list[str] = []
    load, originals = torch.load, filesystem.pickle  # type: ignore[attr-defined]

    def load_weights(*args: Any, **kwargs: Any) -> Any:
        try:
            return load(*args, **{**kwargs, "weights_only": True})
        except pickle.UnpicklingError as error:
            refused.append(_named(error))
            raise

    def load_description(file: Any) -> Any:
        try:
            return _description(file)
        except (pickle.UnpicklingError, AttributeError, TypeError) as error:
            refused.append(str(error))
            raise

    torch.load = load_weights
    filesystem.pickle = types.SimpleNamespace(**{**vars(pickle), "load": load_description})  # type: ignore[attr-defined]
    try:
        with torch.serialization.safe_globals(list(_WEIGHTS)):
            yield
    except Exception as error:
        if refused:
            message = f"its weights hold more than weights: {refused[0]}"
            raise DataError(message, where=Where(file=str(path)), instead="load only what you would run") from error
        raise
    finally:
        torch.load = load
        filesystem.pickle = originals  # type: ignore[attr-defined]


def _named(error: pickle.UnpicklingError) -> str:
    """The name that torch's unpickler refused, out of its page of advice."""
    lines = [line.strip() for line in str(error).splitlines()]
    reason = next((line for line in lines if "GLOBAL" in line or "nsupported" in line), lines[-1] if lines else "")
    return reason.removeprefix("WeightsUnpickler error: ")[:200]
