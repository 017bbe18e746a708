"""``.nemo`` files: archives, or folders where the weights are large, written whole and read under any parallel layout."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from nemo.collections.nlp.parts.nlp_overrides import NLPSaveRestoreConnector
from omegaconf import DictConfig, OmegaConf

from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.formats.nemo_archive import archived_config
from nemo_steerlm.megatron import compat
from nemo_steerlm.megatron.distributed import make_trainer, start_distributed
from nemo_steerlm.megatron.gpt_sft import SteerLMGPTSFTModel, fitted_config
from nemo_steerlm.megatron.machine import portable
from nemo_steerlm.megatron.model_config import DEFAULTS
from nemo_steerlm.megatron.nemo_places import FOLDER_ABOVE_GB, gigabytes, temporary_files_in
from nemo_steerlm.megatron.weights_only import weights_only


def save_nemo(model: SteerLMGPTSFTModel, path: str | Path, *, folder_above_gb: float = FOLDER_ABOVE_GB) -> None:
    """Write a ``.nemo``, whole or not at all: an archive, or where the weights are larger than that a folder. Every rank calls this."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    folder = gigabytes(model) > folder_above_gb
    first = torch.distributed.get_rank() == 0
    if first:
        _remove(partial)
        (partial if folder else path.parent).mkdir(parents=True, exist_ok=True)
    torch.distributed.barrier()
    cfg, connector = model.cfg, model._save_restore_connector
    model.cfg, connector.pack_nemo_file = portable(cfg), not folder
    try:
        with temporary_files_in(path.parent):
            model.save_to(str(partial / "packed" if folder else partial))
    finally:
        model.cfg, connector.pack_nemo_file = cfg, True
    if first:
        if folder or path.is_dir():
            _remove(path)
        partial.replace(path)
    torch.distributed.barrier()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def nemo_config(path: str | Path) -> DictConfig:
    """The model config inside a ``.nemo``. Raises UsageError where there is no such file, DataError for one that is refused."""
    if not Path(path).exists():
        raise UsageError(f"{path}: no such file")
    return archived_config(path)


def restore_nemo(
    path: str | Path, trainer: Trainer | None = None, overrides: dict[str, Any] | DictConfig | None = None, scratch: Path | None = None
) -> SteerLMGPTSFTModel:
    """Load a ``.nemo`` under any parallel layout; ``overrides`` are merged into its config.

    A folder is read where it is, an archive unpacked in ``scratch`` (by default where temporary files go).
    """
    trainer = trainer or make_trainer()
    cfg = cast(DictConfig, OmegaConf.merge(OmegaConf.load(DEFAULTS), nemo_config(path), overrides or {}))
    compat.activate()
    start_distributed(cfg, trainer)
    connector = NLPSaveRestoreConnector()
    connector.model_extracted_dir = str(Path(path).absolute()) if Path(path).is_dir() else None
    with weights_only(path), temporary_files_in(scratch):
        model: SteerLMGPTSFTModel = SteerLMGPTSFTModel.restore_from(
            str(path), override_config_path=fitted_config(cfg), trainer=trainer, save_restore_connector=connector
        )
    return model
