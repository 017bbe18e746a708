"""The engine for a ``.nemo``: Megatron's own layers under tensor and pipeline parallelism, the loop of every other engine around them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from nemo_steerlm.core.errors import DataError, UsageError
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.tokenization import TextTokenizer
from nemo_steerlm.formats.nemo_archive import nemo_archive
from nemo_steerlm.inference.batching import BatchedEngine
from nemo_steerlm.inference.huggingface import HuggingFaceEngine
from nemo_steerlm.inference.ranks import Ranks, require_devices
from nemo_steerlm.inference.registry import EngineOptions
from nemo_steerlm.megatron import compat
from nemo_steerlm.megatron.model_config import Parallelism, check_architecture

if TYPE_CHECKING:
    from nemo_steerlm.inference.megatron_model import ServingModel


class MegatronEngine(BatchedEngine):
    """See ``Engine``. Runs on rank 0, which tells the other ranks what to do."""

    def __init__(self, info: ModelInfo, tokenizer: TextTokenizer, model: ServingModel, ranks: Ranks, options: EngineOptions) -> None:
        """Raises what BatchedEngine does."""
        super().__init__(info, tokenizer, model, options)
        self._megatron = model
        self._ranks = ranks

    def close(self) -> None:
        """See Engine. The other ranks end."""
        self._megatron.close()
        self._ranks.close()


def load_engine(path: Path, options: EngineOptions) -> BatchedEngine:
    """The engine for a ``.nemo`` saved under any layout, over ``devices * nodes`` processes; starts those that no launcher started.

    On ranks other than 0 this does not return: they exit when rank 0 closes its engine. For a single process the file is converted to
    a model folder: transformers' layers decode faster on a CPU, and the server imports no NeMo. Only then ``options.device`` counts.

    Raises:
        UsageError: If the file is no ``.nemo`` of this project.
        ConfigError: If parallel sizes and devices do not fit each other or the model.
    """
    tensor, pipeline, devices, nodes = options.tensor, options.pipeline, options.devices, options.nodes
    if min(tensor, pipeline) < 0:
        cfg, _ = nemo_archive(path)
        tensor = tensor if tensor > 0 else cfg.get("tensor_model_parallel_size", 1)
        pipeline = pipeline if pipeline > 0 else cfg.get("pipeline_model_parallel_size", 1)
    require_devices(devices, nodes, tensor, pipeline)
    if devices * nodes == 1:
        return _converted(path, options)
    layout = Parallelism(world_size=devices * nodes, tensor=tensor, pipeline=pipeline)
    return restore_megatron_engine(path, layout, options)


def restore_megatron_engine(path: Path, layout: Parallelism, options: EngineOptions | None = None) -> MegatronEngine:
    """As ``load_engine``, always with Megatron's layers.

    Raises:
        UsageError: If the file does not say what the model was taught.
    """
    options = options or EngineOptions()
    cfg, tokenizer = nemo_archive(path)
    if cfg.get("steerlm") is None:
        raise UsageError(f"{path}: its config has no steerlm section; is this a model that nemo_steerlm trained?")
    info = ModelInfo.from_dict(OmegaConf.to_container(cfg.steerlm, resolve=True), str(path))
    check_architecture(cfg, layout)
    ranks = Ranks(devices=layout.world_size // options.nodes, nodes=options.nodes)
    # NeMo takes seconds to import: the other ranks start first.
    with compat.importing_nemo():
        from nemo_steerlm.inference.megatron_model import load_serving_model

    model = load_serving_model(path, layout, nodes=options.nodes, failed=ranks.fail)
    if ranks.rank:
        model.follow()
        raise SystemExit(0)
    return MegatronEngine(info, tokenizer, model, ranks, options)


def _converted(path: Path, options: EngineOptions) -> BatchedEngine:
    """The embedded engine on ``path``, which a process of its own writes out as a Hugging Face folder."""
    with tempfile.TemporaryDirectory(prefix="steerlm-serve-") as scratch:
        folder = Path(scratch) / path.stem
        command = [sys.executable, "-m", "nemo_steerlm.cli.main", "convert", str(path), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1].removeprefix("steerlm: ")
            if done.returncode == DataError.exit_code:
                raise DataError(reason)
            raise UsageError(f"{path}: cannot be converted: {reason}")
        return HuggingFaceEngine(folder, options)
