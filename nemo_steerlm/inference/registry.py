"""The engines there are. The flag ``--engine``, its help and error messages follow from this table. Imports nothing heavy.

A new engine is a module with ``load_engine(path, options)``, and an entry here.
"""

from __future__ import annotations

import msgspec


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine of this process is to run a model."""

    max_rows: int = 128
    """Rows that generate, or conversations that are scored, at once."""
    max_model_len: int | None = None
    """Tokens of prompt and answer together; see ``ModelInfo.served_length``."""
    cache_tokens: int | None = None
    """Tokens whose keys and values are kept at once, the padding of shorter rows included; None: half of the free memory."""
    prefix_cache: bool = True
    """Whether keys and values of what was read are kept, in a part of ``cache_tokens``, for texts that begin alike."""
    device: str | None = None
    """``cpu``, ``cuda`` or ``cuda:1``; None: CUDA if there is any."""
    tensor: int = 1
    """Tensor-parallel ranks; below 0: as the checkpoint has it."""
    pipeline: int = 1
    """Pipeline stages; below 0: as the checkpoint has it."""
    devices: int = 1
    """Processes per node."""
    nodes: int = 1


class Loader(msgspec.Struct, frozen=True, kw_only=True):
    """The module that loads one kind of model file. It has ``load_engine(path: Path, options: EngineOptions) -> Engine``."""

    module: str
    extra: str
    """The extras of this package that its imports need, as ``pip install nemo_steerlm[EXTRA]`` names them."""


class EngineEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An engine, as ``--engine`` names it."""

    name: str
    summary: str
    """Its part of the flag's help."""
    folders: Loader | None = None
    """Loads exported model folders; None if the engine is a server of its own."""
    archives: Loader | None = None
    """Loads ``.nemo`` files; None if it cannot."""
    cpu_only: bool = False

    @property
    def remote(self) -> bool:
        """Whether another process has the weights."""
        return self.folders is None


_ENTRIES = (
    EngineEntry(
        name="embedded",
        summary="transformers in this process",
        folders=Loader(module="nemo_steerlm.inference.huggingface", extra="serve"),
        archives=Loader(module="nemo_steerlm.inference.megatron_engine", extra="nemo"),
    ),
    EngineEntry(
        name="openvino",
        summary="its layers compiled for CPUs",
        folders=Loader(module="nemo_steerlm.inference.openvino", extra="serve,openvino"),
        cpu_only=True,
    ),
    EngineEntry(name="vllm", summary="vLLM, started by this command"),
    EngineEntry(name="openai", summary="the server at --upstream"),
)
ENGINES: dict[str, EngineEntry] = {entry.name: entry for entry in _ENTRIES}
"""By name; the first is the default."""
ENGINE_HELP = "; ".join(f"{entry.name}: {entry.summary}" for entry in _ENTRIES)
"""The flag's help."""
