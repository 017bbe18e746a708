"""The training loop: batch, gradient, step, validation, checkpoint. Imports NeMo."""

from __future__ import annotations

import logging
import math
import pkgutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state, tensor_parallel
from omegaconf import OmegaConf, open_dict

from nemo_steerlm.core.errors import EXIT_TERMINATED, ConfigError, TryAgainError
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.objectives import objective
from nemo_steerlm.formats.nemo_archive import is_nemo
from nemo_steerlm.megatron import compat, lora
from nemo_steerlm.megatron.cpu import multiplies_in_bf16
from nemo_steerlm.megatron.distributed import make_trainer, share_cores, start_distributed
from nemo_steerlm.megatron.gpt_sft import SteerLMGPTSFTModel, build_model
from nemo_steerlm.megatron.micro_batch import MicroBatch
from nemo_steerlm.megatron.nemo_files import restore_nemo, save_nemo
from nemo_steerlm.training import checkpoints, optimizer
from nemo_steerlm.training.arithmetic import precision_of
from nemo_steerlm.training.batches import Collator, TrainingOrder
from nemo_steerlm.training.control import control_error
from nemo_steerlm.training.flops import Operations, peak
from nemo_steerlm.training.plan import Plan
from nemo_steerlm.training.reporting import Reporter
from nemo_steerlm.training.save_clock import SaveClock
from nemo_steerlm.training.selection import CONTROL
from nemo_steerlm.training.settings import deadline_seconds, sizes_of
from nemo_steerlm.training.stop_signal import StopSignal
from nemo_steerlm.training.validation import Validator, ValueTokens

logger = logging.getLogger(__name__)


class TrainingLoop:
    """One run of one plan."""

    def __init__(self, plan: Plan, stop: StopSignal) -> None:
        self.plan, self.stop, self.state = plan, stop, plan.state
        limit = deadline_seconds(plan.cfg.exp_manager.max_time_per_run)
        self.deadline = None if limit is None else time.monotonic() + limit
        self.saves = SaveClock(plan.cfg.trainer.sft.save_minutes)
        self.save_due = False
        self.saved = 0
        self.folder = plan.log_dir / "checkpoints"
        compat.activate()
        share_cores()
        cfg = plan.model_config
        trainer = make_trainer(
            devices=plan.cfg.trainer.devices,
            num_nodes=plan.cfg.trainer.num_nodes,
            precision=precision_of(plan.cfg.trainer.precision),
            gradient_clip_val=float(plan.cfg.trainer.sft.gradient_clip_val or 0.0),
        )
        start_distributed(cfg, trainer)
        self.first_rank = torch.distributed.get_rank() == 0
        self.adapters_only = cfg.peft.peft_scheme not in (None, "none")
        if plan.info is not None:
            with open_dict(cfg):
                cfg.steerlm = plan.info.to_dict()
        if compat.HAVE_CUDA:
            plan.memory.require(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
        self.model = load_base(plan, trainer)
        if self.adapters_only:
            lora.add(self.model)
            if plan.random_markers:
                lora.learn_markers(self.model, plan.random_markers)
            if str(cfg.precision) == "bf16":
                lora.freeze_in(self.model, torch.bfloat16)
        self.model.loss_of = pkgutil.resolve_name(objective(plan.train.mode).loss)
        self.model.bf16_products = _bf16_products(precision_of(plan.cfg.trainer.precision))
        optimizer.set_up(self.model, plan.steps)
        pipeline = plan.layout.pipeline > 1
        shared: dict[str, Any] = {"pad_id": _pad_id(self.model), "multiple_of": self._width_multiple(), "same_length": pipeline}
        shared |= {"packed": self.model.packs, "rows_apart": self.model.packs_rows_apart}
        shared["context"] = (parallel_state.get_context_parallel_rank(), plan.layout.context)
        rank = parallel_state.get_data_parallel_rank()
        self.sizes = sizes_of(plan.cfg, "train_ds", plan.layout, rank)
        self.batches = Collator(plan.train, **shared)
        section = plan.cfg.model.data.train_ds
        self.order = TrainingOrder.of(plan.train, section.global_batch_size, plan.cfg.model.seed, shuffle=section.shuffle)
        self.validator = None
        if plan.validation is not None:
            self.validator = Validator(
                model=self.model,
                collator=Collator(plan.validation, **shared),
                sizes=sizes_of(plan.cfg, "validation_ds", plan.layout, rank),
                limit_batches=plan.cfg.trainer.sft.limit_val_batches,
                values=ValueTokens.seen_in(plan.train, plan.validation),
            )
        self.operations = Operations.of(plan.model_config, self.model.tokenizer.vocab_size)
        self.report = Reporter(plan.cfg, plan.log_dir, plan.stage, plan.steps, active=self.first_rank, peak=_peak(plan))

    def run(self) -> None:
        """Train to the end, or until SIGTERM (exit 143) or the time limit (exit 75); a checkpoint is saved in either case."""
        if self.plan.checkpoint is not None:
            optimizer.load_state(self.model, checkpoints.load(self.plan.checkpoint, optimizer.sharded_state(self.model, loading=True)))
            self.state = checkpoints.read_state(self.plan.checkpoint)
        elif self.first_rank and self.plan.cfg.model.resume_from_checkpoint is None:
            checkpoints.remove_all(self.folder)
        torch.distributed.barrier()
        self.model.train()
        self.saved, monitor = self.state.step, self.plan.monitor
        while self.state.step < self.plan.steps and not monitor.exhausted(self.state):
            stopping = self._step()
            last, better = self.state.step == self.plan.steps, False
            if last or (not stopping and self.state.step % self.plan.validate_every == 0):
                better = self._validate()
            last |= monitor.exhausted(self.state)
            due = self.save_due or self.state.step % self.plan.save_every == 0
            if stopping or last or due or (better and monitor.keep_best):
                self._save()
            if stopping and not last:
                self._leave(stopping)
        if self.state.step < self.plan.steps:
            logger.info("%d validations without a better %s: training ends", self.state.validations_since_best, monitor.name)
        self._take_best()
        self._finish()

    def _take_best(self) -> None:
        best = self.state.best_step
        if not self.plan.monitor.keep_best or best in (None, self.state.step):
            return
        logger.info("%s was best at step %d: its weights are what is saved", self.plan.monitor.name, best)
        path = checkpoints.at_step(self.folder, best)
        weights = checkpoints.load(path, {"weights": self.model.trainable_sharded_state_dict()})["weights"]
        self.model.load_trainable_state_dict(weights)

    def _step(self) -> int:
        """One global batch. Returns why to stop after it: 0 not at all, 1 the time is up, 2 SIGTERM came, the same on every rank."""
        began = time.perf_counter()
        state, model = self.state, self.model
        epoch, within = divmod(state.step, self.plan.steps_per_epoch)  # limit_train_batches may shorten an epoch
        indices = self.order.batch(epoch * self.order.steps_per_epoch + within)
        batches = self.batches.micro_batches(indices, self.sizes)
        self._seed(state.step)
        if model.use_mcore_dist_optim:
            for chunk in model.model:
                chunk.zero_grad_buffer()
        model._optimizer.zero_grad()
        results = model.run_micro_batches(batches, forward_only=False)
        model.reduce_gradients()
        norm = model.clip_gradients(float(self.plan.cfg.trainer.sft.gradient_clip_val or 0.0))
        lr = model._optimizer.param_groups[0]["lr"]
        if math.isfinite(norm):  # the same on every rank: a gradient that is not is so everywhere once it has been summed
            model.step_optimizer()
        if model._scheduler:
            model._scheduler["scheduler"].step()
        loss, tokens, stopping = self._agree(results, batches, indices)
        state.step += 1
        state.consumed_samples += len(indices)
        entry = {
            "step": state.step,
            "loss": checkpoints.finite(loss),
            "lr": lr,
            "grad_norm": checkpoints.finite(norm),
            "tokens": tokens,
            "seconds": time.perf_counter() - began,
        }
        if not math.isfinite(norm):
            entry["skipped"] = 1
        state.train.append(entry)
        known = {} if self.saves.stop_seconds is None else {"stop_seconds": round(self.saves.stop_seconds, 1)}
        operations = self.operations.of_step(tokens, self.plan.train.learned_tokens(indices))
        self.report.step({**entry, "consumed_samples": state.consumed_samples}, operations, saved=self.saved, **known)
        self._check_skipped()
        return stopping

    def _check_skipped(self) -> None:
        """Steps whose gradients are not finite change no weights; too many of them in a row end the training."""
        skipped, limit = self.state.skipped_in_a_row, self.plan.cfg.trainer.sft.skipped_steps_limit
        if skipped:
            logger.warning("step %d: gradients are not finite, the weights stay as they are", self.state.step)
        if skipped > limit:
            raise ConfigError(
                f"step {self.state.step}: the gradients of {skipped} steps in a row were not finite "
                f"(trainer.sft.skipped_steps_limit={limit}); lower model.optim.lr or check the base model"
            )

    def _agree(self, results: list[dict[str, Any]], batches: list[MicroBatch], indices: Any) -> tuple[float, int, int]:
        """Loss of the global batch, its tokens, and whether a rank was told to stop or to save: one exchange among all ranks."""
        counts = parallel_state.is_pipeline_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0
        loss = sum(float(result["loss_sum"]) for result in results) if counts else 0.0
        tokens = sum(int((batch["tokens"] != self.batches.pad_id).sum()) for batch in batches) if counts else 0
        stop = 2.0 if self.stop.came else float(self.deadline is not None and time.monotonic() > self.deadline)
        due = float(self.first_rank and self.saves.due)
        figures = torch.tensor([loss, tokens, stop, 1.0 if stop == 2.0 else 0.0, due], dtype=torch.float64, device="cuda")
        torch.distributed.all_reduce(figures)
        self.saves.ask()
        stopping, self.save_due = 2 if figures[3] else int(figures[2] > 0), bool(figures[4])
        return float(figures[0]) / self.plan.train.learned_tokens(indices), int(figures[1]), stopping

    def _seed(self, step: int) -> None:
        """Dropout depends on the step alone, so a training that was interrupted goes on as if it had not been."""
        cfg = self.model.cfg
        if cfg.hidden_dropout or cfg.attention_dropout or (self.adapters_only and cfg.peft.lora_tuning.adapter_dropout):
            place = parallel_state.get_pipeline_model_parallel_rank(), parallel_state.get_data_parallel_rank()
            seed = dropout_seed(self.plan.cfg.model.seed, step, *place)
            torch.manual_seed(seed)
            # Megatron-Core adds the tensor-parallel rank where ranks hold different parts, and only there.
            tensor_parallel.model_parallel_cuda_manual_seed(seed)

    def _validate(self) -> bool:
        """Whether what is monitored is better than it was."""
        if self.validator is None:
            return False
        result = self.validator.run()
        if self.plan.monitor.name == CONTROL:
            job, folder = Path(self.plan.cfg.steerlm.control_job), self.plan.log_dir / "control"
            result["control"] = control_error(self.model, self.plan.info, job, folder, adapters=self.adapters_only)
        self.state.validation.append({"step": self.state.step, **result})
        if self.first_rank:
            self.report.validation(self.state.step, result)
        return self.plan.monitor.note(self.state, result)

    def _save(self) -> None:
        manager = self.plan.cfg.exp_manager
        if manager.create_checkpoint_callback and self.saved != self.state.step:
            best = self.state.best_step if self.plan.monitor.keep_best else None
            with self.saves.saving():
                shards = optimizer.sharded_state(self.model, loading=False)
                checkpoints.save(self.folder, self.state, shards, keep=manager.checkpoint_callback_params.save_top_k, best=best)
            if self.first_rank:
                self.report.saved(self.saves.stop_seconds or 0.0)
            self.saved = self.state.step

    def _leave(self, stopping: int) -> None:
        if stopping == 2:
            logger.warning("SIGTERM: saved step %d of %d; the same command goes on from there", self.state.step, self.plan.steps)
            sys.stdout.flush()
            raise SystemExit(EXIT_TERMINATED)
        raise TryAgainError(f"time limit: saved step {self.state.step} of {self.plan.steps}; the same command goes on from there")

    def _finish(self) -> None:
        """Merge adapters, export, and write the ``.nemo``."""
        cfg, info, adapter = self.plan.cfg, self.plan.info, None
        if self.adapters_only:
            if cfg.steerlm.export_dir is not None:
                from nemo_steerlm.megatron.lora_export import peft_adapter

                adapter = peft_adapter(self.model, cfg.model.restore_from_path, self.plan.random_markers or self.plan.added_tokens)
            lora.merge(self.model)
        with open_dict(self.model.cfg):  # a model without CUDA is built in fp32; what is saved says what was asked for, as on GPUs
            self.model.cfg.precision = precision_of(cfg.trainer.precision)
        if cfg.steerlm.export_dir is not None:
            from nemo_steerlm.megatron.hf_export import export_hf

            info = _broadcast(export_hf(self.model, Path(cfg.steerlm.export_dir), info, adapter))
        nemo = None
        if cfg.exp_manager.checkpoint_callback_params.save_nemo_on_train_end:
            with open_dict(self.model.cfg):
                self.model.cfg.steerlm = info.to_dict() if info else None
            nemo = self.folder / f"{cfg.exp_manager.name}.nemo"
            save_nemo(self.model, nemo, folder_above_gb=cfg.steerlm.nemo_folder_above_gb)
        self.report.finish(self.state, nemo=str(nemo) if nemo else None, fingerprint=info.fingerprint if info else None)

    def _width_multiple(self) -> int:
        """What sequence lengths are padded to: nothing on a CPU, tensor cores and sequence parallelism want round numbers."""
        parallel = self.plan.layout.tensor if self.model.cfg.get("sequence_parallel") else 1
        context = self.plan.layout.context
        return (16 if compat.HAVE_CUDA else 1) * parallel * (2 * context if context > 1 else 1)


def dropout_seed(seed: int, step: int, pipeline_rank: int, data_parallel_rank: int) -> int:
    """Its own for every step, pipeline stage and data-parallel rank, whose dropout would otherwise hit the same places."""
    return int(np.random.SeedSequence((seed, step, pipeline_rank, data_parallel_rank)).generate_state(1)[0]) >> 1


def load_base(plan: Plan, trainer: Any) -> SteerLMGPTSFTModel:
    """The model that training starts from, under this run's layout."""
    path = plan.cfg.model.restore_from_path
    if path is not None and is_nemo(path):
        overrides = OmegaConf.masked_copy(plan.model_config, [key for key in plan.model_config if key != "tokenizer"])
        plan.log_dir.mkdir(parents=True, exist_ok=True)
        return restore_nemo(path, trainer, overrides, plan.log_dir)
    model = build_model(plan.model_config, trainer)
    if path is not None:
        from nemo_steerlm.megatron.hf_import import load_hf_weights

        load_hf_weights(model, path)
    return model


def _peak(plan: Plan) -> float | None:
    """What all GPUs of a training in bf16 can compute, in operations a second."""
    if not compat.HAVE_CUDA or precision_of(plan.cfg.trainer.precision) != "bf16":
        return None
    one = peak(torch.cuda.get_device_name())
    return None if one is None else one * plan.layout.world_size


def _bf16_products(precision: str) -> bool:
    if compat.HAVE_CUDA or not precision.startswith("bf16"):
        return False
    if multiplies_in_bf16():
        logger.info("trainer.precision=%s: matrix products and what passes between layers in bf16", precision)
        return True
    logger.info("trainer.precision=%s: this CPU has no instructions for it, everything in fp32", precision)
    return False


def _broadcast(info: ModelInfo | None) -> ModelInfo | None:
    shared = [info]
    torch.distributed.broadcast_object_list(shared, src=0)
    return shared[0]


def _pad_id(model: SteerLMGPTSFTModel) -> int:
    eos = getattr(model.tokenizer, "eos_id", None)
    return eos if isinstance(eos, int) and eos >= 0 else 0
