"""What the weight files of a checkpoint hold: names, shapes and types of tensors, from their headers. No torch; pickles build nothing."""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nemo_steerlm.core.errors import ConfigError, UsageError, shown
from nemo_steerlm.formats.gguf_files import open_gguf

SAFETENSORS_INDEX = "model.safetensors.index.json"
TORCH_INDEX = "pytorch_model.bin.index.json"
_POINTER = b"version https://git-lfs"
_PART = re.compile(r"-\d{5}-of-\d{5}\.(gguf|safetensors|bin)$")
_FLOATS: dict[str, tuple[Any, int]] = {
    "F64": (np.uint64, 0x7FF0000000000000),
    "F32": (np.uint32, 0x7F800000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
"""Type to read a float's bits as, and where its exponent is: all ones in NaN and infinity."""
FLOATS = tuple(_FLOATS)
"""Types of weights that can be used, as safetensors names them."""


class TensorHeader(NamedTuple):
    """One tensor, without its values."""

    dtype: str
    """As safetensors names it: F32, BF16, F8_E4M3, I32."""
    shape: tuple[int, ...]


def tensor_headers(source: Path) -> dict[str, TensorHeader]:
    """The tensors of a Hugging Face folder or a ``.gguf`` under Hugging Face's names.

    Raises UsageError where there are no weights, where files are missing or cut, or where they are something else than weights.
    """
    if source.is_file():
        return {name: TensorHeader("F32", shape) for name, shape in open_gguf(source).shapes().items()}
    read = _safetensors_headers if (files := safetensors_files(source)) else _torch_headers
    headers: dict[str, TensorHeader] = {}
    for file in files or torch_files(source):
        headers |= read(file)
    return headers


def safetensors_files(folder: Path) -> list[Path]:
    """The ``.safetensors`` files of ``folder``, in order; none where it keeps its weights in another way."""
    if (folder / SAFETENSORS_INDEX).is_file():
        return sorted({folder / file for file in files_by_name(folder, SAFETENSORS_INDEX).values()})
    return [folder / "model.safetensors"] if (folder / "model.safetensors").is_file() else []


def torch_files(folder: Path) -> list[Path]:
    """The ``pytorch_model*.bin`` files of ``folder``, in order. Raises UsageError where there are none."""
    if (folder / TORCH_INDEX).is_file():
        return sorted({folder / file for file in files_by_name(folder, TORCH_INDEX).values()})
    if (folder / "pytorch_model.bin").is_file():
        return [folder / "pytorch_model.bin"]
    parts = sorted(file.name for file in folder.iterdir() if _PART.search(file.name)) if folder.is_dir() else []
    if parts:
        raise UsageError(f"{folder}: has {parts[0]} but no index; download {SAFETENSORS_INDEX} and all parts")
    raise UsageError(f"{folder}: no model.safetensors and no pytorch_model.bin; give a Hugging Face model folder or a .gguf file")


def files_by_name(folder: Path, index: str) -> dict[str, str]:
    """Which file has which tensor. Raises UsageError where the index is broken or names a file that is not there."""
    path = folder / index
    refuse_pointer(path)
    try:
        weight_map: dict[str, str] = dict(json.loads(path.read_bytes())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not an index of weights ({shown(str(error))}); download the model again") from error
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file or not (folder / file).is_file():
            raise UsageError(f"{folder}: {index} names {shown(file)}, which is not there; download the model again")
    return weight_map


def refuse_pointer(path: Path) -> None:
    """Raise UsageError where ``path`` is what Git LFS leaves in place of a file that was not fetched."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise UsageError(f"{path}: a Git LFS pointer, not the file itself; run `git lfs pull` or download it again")


def refuse_part(path: Path) -> None:
    """Raise UsageError where ``path`` is one file of a checkpoint that was split."""
    if _PART.search(path.name):
        whole = "merge the parts first (llama-gguf-split --merge)" if path.suffix == ".gguf" else "give the folder that has all of them"
        raise UsageError(f"{path}: one part of a checkpoint that was split; {whole}")


def _safetensors_headers(file: Path) -> dict[str, TensorHeader]:
    return {name: TensorHeader(raw["dtype"], tuple(raw["shape"])) for name, raw in _raw_headers(file)[0].items()}


def _raw_headers(file: Path) -> tuple[dict[str, Any], int]:
    """The header of one file, and where its values begin. safetensors itself checks that they are all there."""
    from safetensors import SafetensorError, safe_open

    refuse_pointer(file)
    try:
        with safe_open(file, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{file}: broken ({error}); download the model again") from error
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        headers = json.loads(opened.read(length))
    headers.pop("__metadata__", None)
    return headers, 8 + length


def not_finite(folder: Path) -> str | None:
    """The first tensor of a folder's ``.safetensors`` files with a value that is no finite number. Reads all of them, once."""
    step = 1 << 22
    for name, dtype, bits in _bits(folder):
        kind, exponent = _FLOATS[dtype]
        flat = bits.reshape(-1)
        if any(((flat[i : i + step] & kind(exponent)) == exponent).any() for i in range(0, len(flat), step)):
            return name
    return None


def safetensors_tensors(folder: Path) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """The weights of a folder's ``.safetensors`` files, one after the other, as float32."""
    for name, dtype, bits in _bits(folder):
        if dtype == "BF16":  # the upper half of a float32
            yield name, (bits.astype(np.uint32) << 16).view(np.float32)
        else:
            yield name, bits.view({"F64": np.float64, "F32": np.float32, "F16": np.float16}[dtype]).astype(np.float32)


def _bits(folder: Path) -> Iterator[tuple[str, str, npt.NDArray[Any]]]:
    """Floats as the whole numbers that have their bits, memory-mapped: name, type and values."""
    for file in safetensors_files(folder):
        headers, start = _raw_headers(file)
        for name, raw in headers.items():
            begin, end = raw["data_offsets"]
            if raw["dtype"] in _FLOATS and begin < end:
                kind = _FLOATS[raw["dtype"]][0]
                yield name, raw["dtype"], np.memmap(file, dtype=kind, mode="r", offset=start + begin, shape=tuple(raw["shape"]) or (1,))


_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "LongStorage": "I64",
    "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8", "BoolStorage": "BOOL",
}  # fmt: skip
"""What torch.save calls a tensor's type."""


class _Headers(pickle.Unpickler):
    """Reads the index of a ``torch.save`` archive. Tensors become headers; a pickle that names anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, _offset, shape, *_more: TensorHeader(storage, tuple(shape))
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda header, *_more: header
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no tensor")

    def persistent_load(self, pid: Any) -> Any:
        return pid[1]


def _torch_headers(file: Path) -> dict[str, TensorHeader]:
    refuse_pointer(file)
    if not zipfile.is_zipfile(file):
        raise ConfigError(f"{file}: no archive of torch 1.6 or later (an old pickle, or cut); save the model again as safetensors")
    with _broken(file), zipfile.ZipFile(file) as archive:
        index = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
        if index is None:
            raise pickle.UnpicklingError("it has no data.pkl")
        with archive.open(index) as pickled:
            tensors = _Headers(pickled).load()
    if not isinstance(tensors, dict) or not all(isinstance(header, TensorHeader) for header in tensors.values()):
        raise ConfigError(f"{file}: holds more than tensors by name; save the model again as safetensors")
    return tensors


@contextlib.contextmanager
def _broken(file: Path) -> Iterator[None]:
    try:
        yield
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise ConfigError(f"{file}: not weights that can be read ({error}); save the model again as safetensors") from error
