"""``SteerLMGPTSFTModel``: NeMo's ``MegatronGPTSFTModel`` on the core template, with a token-weighted loss, on GPUs and on CPUs.

Importing this module imports NeMo, which takes ten seconds and more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt import GPTModel
from nemo.collections.nlp.models.language_modeling.megatron_gpt_model import get_specs, mcore_model_customize
from nemo.collections.nlp.models.language_modeling.megatron_gpt_sft_model import MegatronGPTSFTModel
from nemo.collections.nlp.parts.nlp_overrides import NLPDDPStrategy, NLPSaveRestoreConnector
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor

from nemo_steerlm.core.errors import ConfigError, UsageError
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.megatron import compat
from nemo_steerlm.megatron.layers import SteerLMGPT, local_layer_spec

logger = logging.getLogger(__name__)

DEFAULTS = Path(__file__).parent / "conf" / "model.yaml"

CPU_SETTINGS: dict[str, Any] = {
    "use_cpu_initialization": True,
    "precision": "32",
    "megatron_amp_O2": False,
    "use_flash_attention": False,
    "batch_p2p_comm": False,
    "gradient_accumulation_fusion": False,
    "fp8": False,
}
"""What a model without CUDA cannot be built without."""

LOCAL_LAYER_SETTINGS: dict[str, Any] = {
    "transformer_engine": False,
    "masked_softmax_fusion": False,
    "bias_activation_fusion": False,
    "bias_dropout_add_fusion": False,
    "persist_layer_norm": False,
    "apply_rope_fusion": False,
}
"""What goes with Megatron-Core's own layers, where TransformerEngine is missing."""


class SteerLMGPTSFTModel(MegatronGPTSFTModel):
    """A value model or a SteerLM model; which of the two is up to the records it is taught with and ``steerlm`` in its config."""

    def __init__(self, cfg: DictConfig, trainer: Trainer) -> None:
        compat.activate()
        start_distributed(cfg, trainer)
        super().__init__(_fitted(cfg), trainer=trainer)

    @property
    def info(self) -> ModelInfo | None:
        """What this model was taught, or None for a plain language model."""
        stored = self.cfg.get("steerlm")
        return None if stored is None else ModelInfo.from_dict(OmegaConf.to_container(stored, resolve=True), "model_config.yaml")

    def model_provider_func(self, pre_process: bool, post_process: bool) -> GPTModel:
        """One pipeline stage. Upstream's builds every known layer spec first, TransformerEngine's included, and fails without it."""
        cfg = self.cfg
        if self.transformer_engine:
            spec = get_specs(self.spec_name, self.transformer_config, True, cfg.get("hyena"), cfg.get("fp8", False))
        else:
            spec = local_layer_spec(self.transformer_config)
        model = SteerLMGPT(
            config=self.transformer_config,
            transformer_layer_spec=spec,
            vocab_size=cfg.get("override_vocab_size", self.padded_vocab_size),
            max_sequence_length=cfg.encoder_seq_length,
            pre_process=pre_process,
            post_process=post_process,
            parallel_output=True,
            share_embeddings_and_output_weights=cfg.share_embeddings_and_output_weights,
            position_embedding_type=cfg.position_embedding_type,
            rotary_percent=cfg.rotary_percentage,
            seq_len_interpolation_factor=cfg.get("seq_len_interpolation_factor"),
            rotary_base=cfg.rotary_base,
        )
        mcore_model_customize(cfg, model)
        return model

    def cuda(self, *args: Any, **kwargs: Any) -> SteerLMGPTSFTModel:
        """Where there is no CUDA, the model stays where it is."""
        return super().cuda(*args, **kwargs) if compat.HAVE_CUDA else self

    def setup_optimizer_param_groups(self) -> None:
        """Decay matrices only. Upstream tells norms by apex's classes; here by shape, which is the same set."""
        if self.use_peft or compat.HAVE_APEX:
            super().setup_optimizer_param_groups()
            return
        decayed = [p for p in self.model.parameters() if p.requires_grad and p.ndim > 1]
        kept = [p for p in self.model.parameters() if p.requires_grad and p.ndim <= 1]
        self._optimizer_param_groups = ({"params": decayed}, {"params": kept, "weight_decay": 0.0})

    def get_forward_output_and_loss_func(  # type: ignore[override]
        self, validation_step: bool = False, tuning: bool = False
    ) -> Callable[..., tuple[Tensor, Callable[..., Any]]]:
        """Megatron's forward step for micro batches of ``chat_dataset.collate``; upstream's where no tuning batch comes.

        The loss of a micro batch is its sum over learned tokens times ``loss_scale``, so that the gradient is that of the mean over
        the learned tokens of the whole global batch. Upstream averages the means of micro batches, which weighs a token by its
        neighbours and gives another loss for every micro batch size and data-parallel size.
        """
        if not tuning:
            return super().get_forward_output_and_loss_func(validation_step, tuning)

        def forward_step(batches: Iterator[dict[str, Tensor]], model: GPTModel) -> tuple[Tensor, Callable[..., Any]]:
            batch = {key: value.cuda(non_blocking=True) for key, value in next(batches).items()}
            output = model(
                input_ids=batch["tokens"],
                position_ids=batch["position_ids"],
                attention_mask=None,
                labels=batch["labels"],
                loss_mask=batch["loss_mask"],
            )

            def loss(losses: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
                total = losses.float().sum()
                return total * batch["loss_scale"], {"loss_sum": total.detach()}

            return output, loss

        return forward_step


def start_distributed(cfg: DictConfig, trainer: Trainer) -> None:
    """Start this process's ranks: Lightning's launcher, ``torch.distributed``, Megatron's groups. Idempotent.

    Megatron-Core 0.13 takes its process groups while a model is built, NeMo 2.4 still starts them afterwards.
    """
    if parallel_state.model_parallel_is_initialized():
        return
    if not torch.distributed.is_initialized():
        strategy = trainer.strategy
        if strategy.launcher is not None:
            strategy.launcher.launch(lambda: None, trainer=trainer)
        strategy.setup_environment()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=cfg.get("tensor_model_parallel_size", 1),
        pipeline_model_parallel_size=cfg.get("pipeline_model_parallel_size", 1),
        context_parallel_size=cfg.get("context_parallel_size", 1),
    )
    tensor_parallel.model_parallel_cuda_manual_seed(cfg.get("seed", 1234))


def make_trainer(*, devices: int = 1, num_nodes: int = 1, precision: str | int = "bf16", **settings: Any) -> Trainer:
    """The Lightning trainer that NeMo models want: it carries the strategy and the sizes, the loop is ``train.py``'s own."""
    compat.activate()
    strategy = NLPDDPStrategy(
        no_ddp_communication_hook=True, find_unused_parameters=False, process_group_backend=compat.process_group_backend()
    )
    return Trainer(
        accelerator="gpu" if compat.HAVE_CUDA else "cpu",
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=precision if compat.HAVE_CUDA else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **settings,
    )


def build_model(cfg: DictConfig | dict[str, Any], trainer: Trainer | None = None) -> SteerLMGPTSFTModel:
    """A model with random weights from NeMo's ``model`` config; keys left out come from ``conf/model.yaml``."""
    merged = OmegaConf.merge(OmegaConf.load(DEFAULTS), cfg)
    assert isinstance(merged, DictConfig)
    return SteerLMGPTSFTModel(merged, trainer or make_trainer())


def save_nemo(model: SteerLMGPTSFTModel, path: str | Path) -> None:
    """Write a ``.nemo``, whole or not at all. Every rank calls this."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    model.save_to(str(partial))
    if torch.distributed.get_rank() == 0:
        partial.replace(path)
    torch.distributed.barrier()


def nemo_config(path: str | Path) -> DictConfig:
    """The model config inside a ``.nemo``. Raises UsageError where there is no such file."""
    if not Path(path).exists():
        raise UsageError(f"{path}: no such file")
    config: DictConfig = SteerLMGPTSFTModel.restore_from(str(path), return_config=True, save_restore_connector=NLPSaveRestoreConnector())
    return config


def restore_nemo(path: str | Path, trainer: Trainer | None = None, overrides: dict[str, Any] | DictConfig | None = None) -> SteerLMGPTSFTModel:
    """Load a ``.nemo`` under any parallel layout; ``overrides`` are merged into its config."""
    trainer = trainer or make_trainer()
    cfg = OmegaConf.merge(OmegaConf.load(DEFAULTS), nemo_config(path), overrides or {})
    assert isinstance(cfg, DictConfig)
    compat.activate()
    start_distributed(cfg, trainer)
    model: SteerLMGPTSFTModel = SteerLMGPTSFTModel.restore_from(
        str(path), override_config_path=_fitted(cfg), trainer=trainer, save_restore_connector=NLPSaveRestoreConnector()
    )
    return model


def _fitted(cfg: DictConfig) -> DictConfig:
    """``cfg`` with what this machine lacks turned off."""
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.target = f"{SteerLMGPTSFTModel.__module__}.{SteerLMGPTSFTModel.__qualname__}"
        if cfg.get("mcore_gpt") is False:
            raise ConfigError("model.mcore_gpt=False: only Megatron-Core models are supported")
        if not compat.HAVE_CUDA:
            cfg.update(CPU_SETTINGS)
        if not compat.HAVE_TRANSFORMER_ENGINE:
            cfg.update(LOCAL_LAYER_SETTINGS)
    return cfg
