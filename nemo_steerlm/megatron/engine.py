"""The engine for a ``.nemo``: Megatron's own layers under tensor and pipeline parallelism, the loop of every other engine around them."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.tokenization import TextTokenizer
from nemo_steerlm.megatron.ranks import Ranks
from nemo_steerlm.megatron.serving_model import ServingModel, load_serving_model
from nemo_steerlm.megatron.train_config import Layout, check_architecture, nemo_archive
from nemo_steerlm.serving.engines.batching import BatchedEngine
from nemo_steerlm.serving.nemo_flags import require_devices


class MegatronEngine(BatchedEngine):
    """See ``Engine``. Lives on rank 0, which gives the other ranks their orders."""

    def __init__(self, info: ModelInfo, tokenizer: TextTokenizer, model: ServingModel, ranks: Ranks, *, max_rows: int = 32) -> None:
        """Raises ConfigError where a value model's labels cannot be scored."""
        super().__init__(info, tokenizer, model, max_rows=max_rows)
        self._megatron = model
        self._ranks = ranks

    def close(self) -> None:
        """See Engine. The other ranks end."""
        self._megatron.close()
        self._ranks.close()


def load_megatron_engine(
    path: str | Path, *, tensor: int = 1, pipeline: int = 1, devices: int = 1, nodes: int = 1, max_rows: int = 32
) -> MegatronEngine:
    """The engine for a ``.nemo`` saved under any layout, over ``devices * nodes`` processes; starts those that no launcher started.

    Sizes below 0 are the checkpoint's. On ranks other than 0 this does not return: they exit when rank 0 closes its engine.

    Raises UsageError where the file is no ``.nemo`` of this project, ConfigError where sizes and devices do not fit.
    """
    path = Path(path)
    cfg, tokenizer = nemo_archive(path)
    info = _info(cfg, path)
    tensor = tensor if tensor > 0 else cfg.get("tensor_model_parallel_size", 1)
    pipeline = pipeline if pipeline > 0 else cfg.get("pipeline_model_parallel_size", 1)
    require_devices(devices, nodes, tensor, pipeline)
    layout = Layout(world_size=devices * nodes, tensor=tensor, pipeline=pipeline)
    check_architecture(cfg, layout)
    ranks = Ranks(devices=devices, nodes=nodes)
    model = load_serving_model(path, layout, nodes=nodes, failed=ranks.fail)
    if ranks.rank:
        model.follow()
        raise SystemExit(0)
    return MegatronEngine(info, tokenizer, model, ranks, max_rows=max_rows)


def _info(cfg: DictConfig, path: Path) -> ModelInfo:
    if cfg.get("steerlm") is None:
        raise UsageError(f"{path}: its config has no steerlm section; is this a model that nemo_steerlm trained?")
    return ModelInfo.from_dict(OmegaConf.to_container(cfg.steerlm, resolve=True), str(path))
