"""From a model's path to an engine of this process."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from nemo_steerlm.core.errors import ConfigError, UsageError
from nemo_steerlm.inference.engine import Engine
from nemo_steerlm.inference.registry import ENGINES, EngineEntry, EngineOptions, Loader
from nemo_steerlm.megatron.imports import lean_imports


def load_engine(path: Path, options: EngineOptions, *, engine: str = "embedded") -> Engine:
    """Load a model into an engine of this process.

    Args:
        path: An exported model folder, or a ``.nemo`` file.
        options: Where and how wide it runs.
        engine: A name in ``ENGINES`` that is not remote.

    Raises:
        ConfigError: If the extra that the engine needs is not installed, a folder is to be spread over several processes, or the labels
            of a value model cannot be scored.
        UsageError: If the engine does not load this kind of file or use this device, or ``path`` is no model.
    """
    entry = ENGINES[engine]
    loader = _loader(entry, path, options)
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # NeMo asks torch for devices, not this package
    try:
        # By name: the engines' libraries are heavy, and some may be absent.
        with lean_imports("transformers"):
            module: Any = importlib.import_module(loader.module)
    except ImportError as error:
        raise ConfigError(f"{path}: serving it needs nemo_steerlm[{loader.extra}] ({error})") from error
    loaded: Engine = module.load_engine(path, options)
    return loaded


def _loader(entry: EngineEntry, path: Path, options: EngineOptions) -> Loader:
    archive = path.suffix == ".nemo"
    loader = entry.archives if archive else entry.folders
    instead = f"steerlm convert {path} FOLDER makes one" if archive else "leave --device out"
    if loader is None or (entry.cpu_only and (options.device or "cpu") != "cpu"):
        where = " on CPUs" if entry.cpu_only else ""
        raise UsageError(f"{path}: --engine {entry.name} serves exported model folders{where}; {instead}")
    return loader
