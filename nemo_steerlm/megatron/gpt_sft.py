"""``SteerLMGPTSFTModel``: NeMo's ``MegatronGPTSFTModel`` on the core template, with a token-weighted loss, on GPUs and on CPUs.

Importing this module imports NeMo, which takes ten seconds and more.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from megatron.core.tensor_parallel.layers import param_is_not_tensor_parallel_duplicate
from nemo.collections.nlp.models.language_modeling.megatron_gpt_model import MegatronGPTModel, get_specs, mcore_model_customize
from nemo.collections.nlp.models.language_modeling.megatron_gpt_sft_model import MegatronGPTSFTModel
from nemo.collections.nlp.modules.common.megatron.clip_grads import clip_grad_norm_distributed_optimizer
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor

from nemo_steerlm.core.errors import ConfigError, DataError
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.formats.hf_config import multipliers, named_family
from nemo_steerlm.megatron import compat
from nemo_steerlm.megatron.distributed import make_trainer, start_distributed
from nemo_steerlm.megatron.forward_steps import learn_step, score_step, summed, with_bf16_products
from nemo_steerlm.megatron.layers import SteerLMGPT, local_block_spec
from nemo_steerlm.megatron.machine import Machine, fitted
from nemo_steerlm.megatron.marker_rows import MarkerRows
from nemo_steerlm.megatron.micro_batch import MicroBatch
from nemo_steerlm.megatron.model_config import DEFAULTS
from nemo_steerlm.megatron.nemo_tokenizer import build_nemo_tokenizer

logger = logging.getLogger(__name__)


class SteerLMGPTSFTModel(MegatronGPTSFTModel):
    """A value model or a SteerLM model; which of the two is up to the records it is taught with and ``steerlm`` in its config."""

    bf16_products = False
    """On a CPU: matrix products, and so what passes between layers, in bf16; weights and norms in fp32. On GPUs ``precision`` says it."""
    loss_of: Callable[[Tensor], Tensor] = staticmethod(summed)
    """``core.objectives.Objective.loss``: from cross entropies ``[learned]`` to what is minimised."""

    def __init__(self, cfg: DictConfig, trainer: Trainer) -> None:
        compat.activate()
        start_distributed(cfg, trainer)
        destroy_num_microbatches_calculator()  # NeMo refuses a second model of other batch sizes in one process
        super().__init__(fitted_config(cfg), trainer=trainer)
        # Of the instance: an attribute of the class would hide the module that is assigned to this name.
        self.marker_rows: MarkerRows | None = None
        """What is learned of the embedding beside adapters."""

    @property
    def info(self) -> ModelInfo | None:
        """What this model was taught, or None for a plain language model."""
        stored = self.cfg.get("steerlm")
        return None if stored is None else ModelInfo.from_dict(OmegaConf.to_container(stored, resolve=True), "model_config.yaml")

    def model_provider_func(self, pre_process: bool, post_process: bool) -> GPTModel:
        """One pipeline stage. Upstream's builds every known layer spec first, TransformerEngine's included, and fails without it."""
        cfg = self.cfg
        family = named_family(cfg)
        if self.transformer_engine and self.transformer_config.qk_layernorm:  # which get_specs loses
            spec = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=True)
        elif self.transformer_engine:
            spec = get_specs(self.spec_name, self.transformer_config, True, cfg.get("hyena"), cfg.get("fp8", False))
        else:
            spec = local_block_spec(self.transformer_config, family)
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
            tokens=self.tokenizer.vocab_size,
            family=family,
            multipliers=multipliers(cfg),
        )
        mcore_model_customize(cfg, model)
        return model

    @property
    def packs(self) -> bool:
        """Whether it takes packed micro batches: where one rank has all layers and whole sequences.

        In Megatron-Core's own layers rows share what they begin with: they would share what dropout leaves out of it. A mixture of
        experts balances what it is given.
        """
        config = self.transformer_config
        alone = max(config.pipeline_model_parallel_size, config.context_parallel_size) == 1 and not config.sequence_parallel
        dropout = config.hidden_dropout or config.attention_dropout or OmegaConf.select(self.cfg, "peft.lora_tuning.adapter_dropout")
        plain = not (config.num_moe_experts or config.mtp_num_layers)
        return bool(plain and alone and (self.packs_rows_apart or not dropout) and self.cfg.position_embedding_type == "rope")

    @property
    def packs_rows_apart(self) -> bool:
        """Whether packed rows stay whole: TransformerEngine's attention reads them by ``cu_seqlens``."""
        return bool(self.transformer_engine)

    def cuda(self, *args: Any, **kwargs: Any) -> SteerLMGPTSFTModel:
        """Where there is no CUDA, the model stays where it is."""
        return super().cuda(*args, **kwargs) if compat.HAVE_CUDA else self

    def setup_optimizer_param_groups(self) -> None:
        """Decay matrices only. Upstream tells norms by apex's classes, and would decay TransformerEngine's; here by shape."""
        if self.use_peft:
            super().setup_optimizer_param_groups()  # freezes all but adapters
            if self.marker_rows is not None:
                self.marker_rows.requires_grad_(True)
        trained = [p for p in self.parameters() if p.requires_grad]
        decayed, kept = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
        self._optimizer_param_groups = ({"params": decayed}, {"params": kept, "weight_decay": 0.0})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See LightningModule. Raises DataError for FP8 scales, which TransformerEngine unpickles whatever they are."""
        for name, value in checkpoint.get("state_dict", {}).items():
            if name.endswith("_extra_state") and isinstance(value, Tensor) and value.numel():
                raise DataError(f"{name} holds FP8 scales", instead="save the model in bf16")
        super().on_load_checkpoint(checkpoint)

    def trainable_sharded_state_dict(self) -> dict[str, Any]:
        """What training changes, as shards: all weights, or the adapters'."""
        if not self.use_peft:
            weights: dict[str, Any] = MegatronGPTModel.sharded_state_dict(self)
            return weights
        # Not one tensor over all layers, as weights are saved: ``layer_selection`` may leave some layers without adapters.
        (module,) = self.get_model_module_list()
        weights = module.sharded_state_dict(prefix="model.", metadata={"non_homogeneous_layers": True})
        return {name: shard for name, shard in weights.items() if ".adapter_layer." in name or name.startswith("model.marker_rows.")}

    def load_trainable_state_dict(self, weights: dict[str, Tensor]) -> None:
        """Put back what ``trainable_sharded_state_dict`` had saved.

        Raises:
            ConfigError: If there are weights among them that the model lacks.
        """
        state = {name.removeprefix("model."): weight for name, weight in weights.items()}
        _, unexpected = self.get_model_module_list()[0].load_state_dict(state, strict=not self.use_peft)
        if unexpected:
            raise ConfigError(f"the checkpoint has weights that the model has not: {unexpected[0]}")
        if self.marker_rows is not None:
            self.marker_rows.write()

    def _build_tokenizer(self) -> None:
        """As upstream, and from a ``tokenizer.json`` that travels in the ``.nemo``, for which upstream has no key."""
        self.tokenizer = build_nemo_tokenizer(self)
        if self.tokenizer is None:
            super()._build_tokenizer()

    def get_forward_output_and_loss_func(  # type: ignore[override]
        self, validation_step: bool = False, tuning: bool = False
    ) -> Callable[..., tuple[Tensor, Callable[..., Any]]]:
        """Megatron's forward step for a ``MicroBatch``; upstream's where ``tuning`` is off.

        The loss of a micro batch is its sum over learned tokens times ``loss_scale``, so that the gradient is that of the mean over
        the learned tokens of the whole global batch. Upstream averages the means of micro batches, which weighs a token by its
        neighbours and gives another loss for every micro batch size and data-parallel size.
        """
        if not tuning:
            step: Callable[..., tuple[Tensor, Callable[..., Any]]] = super().get_forward_output_and_loss_func(validation_step, tuning)
            return step
        return score_step if validation_step else partial(learn_step, self.loss_of)

    def run_micro_batches(self, batches: Sequence[MicroBatch], *, forward_only: bool) -> list[dict[str, Any]]:
        """Forward, and unless ``forward_only`` backward, through Megatron's pipeline schedule.

        Returns what the loss functions returned, one for each micro batch, on the last pipeline stage; nothing on the others.
        """
        self._set_gradient_hooks(forward_only)
        step = self.get_forward_output_and_loss_func(validation_step=forward_only, tuning=True)
        rows, width = batches[0]["tokens"].shape
        losses: list[dict[str, Any]] = get_forward_backward_func()(
            forward_step_func=partial(with_bf16_products, step) if self.bf16_products else step,
            data_iterator=iter(batches),
            model=self.model,
            num_microbatches=len(batches),
            seq_length=width * parallel_state.get_context_parallel_world_size(),  # of which each rank has a part
            micro_batch_size=rows,
            forward_only=forward_only,
        )
        return losses

    def _set_gradient_hooks(self, forward_only: bool) -> None:
        """What overlaps gradient reduction with the backward pass; only apex's distributed Adam and Megatron's own do (upstream's rule)."""
        no_sync = grad_sync = param_sync = finalize = None
        if self.with_distributed_adam and not self.use_mcore_dist_optim and not forward_only:
            no_sync = partial(self._optimizer.no_sync, greedy_grad_copy=self.megatron_amp_O2)
            grad_sync, param_sync = self.reduce_overlap_gradients, self.sync_overlap_parameters
        if self.use_mcore_dist_optim:
            finalize = finalize_model_grads
        for module in self.get_model_module_list():
            module.config.no_sync_func, module.config.grad_sync_func, module.config.param_sync_func = no_sync, grad_sync, param_sync
            module.config.finalize_model_grads_func = finalize

    def reduce_gradients(self) -> None:
        """Bring gradients to where the optimizer needs them, after the pipeline schedule (order as upstream's ``training_step``)."""
        parallel = parallel_state.get_tensor_model_parallel_world_size() > 1 and self.cfg.get("sequence_parallel", False)
        if parallel and not self.use_mcore_dist_optim:
            self.allreduce_sequence_parallel_gradients()
        if self.transformer_config.qk_layernorm and not self.use_mcore_dist_optim:
            self._add_up_query_key_norms()
        if self.with_distributed_adam:
            if not self.use_mcore_dist_optim:
                self._optimizer._finish_bucket_grad_sync()
        elif self.megatron_amp_O2:
            self._optimizer.allreduce_main_grads()
        elif parallel_state.get_data_parallel_world_size(with_context_parallel=True) > 1:
            self.allreduce_gradients()
        if not self.use_mcore_dist_optim:
            self.allreduce_first_last_embeddings()
        if self.marker_rows is not None:
            self.marker_rows.reduce()

    def _add_up_query_key_norms(self) -> None:
        """Each tensor-parallel rank has the gradient of its own heads; Megatron-Core adds them up for its own optimizer only."""
        if parallel_state.get_tensor_model_parallel_world_size() == 1:
            return
        named = [(name, p) for module in self.get_model_module_list() for name, p in module.named_parameters()]
        norms = [p for name, p in named if name.endswith(("q_layernorm.weight", "k_layernorm.weight"))]
        for parameter in norms:
            if parameter.grad is not None and not getattr(parameter, "sequence_parallel", False):  # those are added up with the others
                torch.distributed.all_reduce(parameter.grad, group=parallel_state.get_tensor_model_parallel_group())

    def clip_gradients(self, max_norm: float) -> float:
        """Scale gradients down to ``max_norm`` over all ranks that share the model; returns their norm. 0 measures only."""
        if self.use_mcore_dist_optim:
            return self._clip_shards(max_norm)
        if self.with_distributed_adam:
            return float(clip_grad_norm_distributed_optimizer(self._optimizer, max_norm or math.inf))
        parameters = self._optimizer.get_parameters_with_grad() if self.megatron_amp_O2 else self.get_parameters_with_grad()
        counted = [p.grad for p in parameters if not getattr(p, "shared", False) and param_is_not_tensor_parallel_duplicate(p)]
        norm = _norm(counted)
        if max_norm and norm > max_norm:
            torch._foreach_mul_([p.grad for p in parameters], max_norm / (norm + 1e-6))
        return float(norm)

    def _clip_shards(self, max_norm: float) -> float:
        """Of Megatron-Core's distributed optimizer: its ``step`` in two, so that a step can be left out when the norm is known."""
        distributed = self._optimizer.mcore_optimizer
        distributed.prepare_grads()
        norm = float(distributed.get_grad_norm())
        if max_norm and norm > max_norm:
            # Megatron-Core's own function asserts that gradients lie on a GPU.
            shards = [p.grad for optimizer in distributed.chained_optimizers for p in optimizer.get_parameters() if p.grad is not None]
            torch._foreach_mul_(shards, max_norm / (norm + 1e-6))
        return norm

    def step_optimizer(self) -> None:
        """Change the weights, after ``clip_gradients``."""
        if self.use_mcore_dist_optim:
            self._optimizer.mcore_optimizer.step_with_ready_grads()
        else:
            self._optimizer.step()
        if self.marker_rows is not None:
            self.marker_rows.write()


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """Of the gradients of all ranks that share a model. Megatron-Core's, without apex, takes them one by one, and exchanges with nobody."""
    squares = torch.zeros((), device="cuda")
    if gradients:
        squares = torch.stack(torch._foreach_norm(gradients, dtype=torch.float32)).square().sum()
    group = parallel_state.get_model_parallel_group()
    if group.size() > 1:
        torch.distributed.all_reduce(squares, group=group)
    return squares.sqrt()


def build_model(cfg: DictConfig | dict[str, Any], trainer: Trainer | None = None) -> SteerLMGPTSFTModel:
    """A model with random weights from NeMo's ``model`` config; keys left out come from ``conf/model.yaml``."""
    return SteerLMGPTSFTModel(cast(DictConfig, OmegaConf.merge(OmegaConf.load(DEFAULTS), cfg)), trainer or make_trainer())


def fitted_config(cfg: DictConfig) -> DictConfig:
    """``cfg`` for this class on this machine.

    Raises:
        ConfigError: If it is of a model that is not Megatron-Core's.
    """
    cfg = fitted(cfg, Machine.here())
    with open_dict(cfg):
        cfg.target = f"{SteerLMGPTSFTModel.__module__}.{SteerLMGPTSFTModel.__qualname__}"
        if cfg.get("mcore_gpt") is False:
            raise ConfigError("model.mcore_gpt=False: only Megatron-Core models are supported")
        if cfg.tokenizer.get("library") == "sentencepiece":
            # NeMo's legacy mode knows no ids of BOS and EOS. Prompts are encoded by core.tokenization in either case.
            cfg.tokenizer.sentencepiece_legacy = cfg.tokenizer.get("sentencepiece_legacy", False)
    return cfg
