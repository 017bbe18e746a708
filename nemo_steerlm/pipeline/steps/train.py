"""Training stages: the manifest's numbers as the trainer's configuration, started under torchrun where it runs wide."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from nemo_steerlm.core.conversation import SYSTEM_PROMPT
from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.core.label_support import LabelSupport
from nemo_steerlm.core.model_info import FILE_NAME, ModelInfo
from nemo_steerlm.core.processes import LAUNCHER_SECONDS, grace_seconds
from nemo_steerlm.pipeline.cluster_types import amount
from nemo_steerlm.pipeline.manifest import PipelineSpec
from nemo_steerlm.pipeline.run_context import Run, node_rank
from nemo_steerlm.pipeline.stages import CHECKPOINT, MODEL_FOLDER
from nemo_steerlm.pipeline.stages.stage import Training
from nemo_steerlm.pipeline.steps.child import call
from nemo_steerlm.pipeline.steps.control_samples import write_control_job
from nemo_steerlm.pipeline.steps.gathering import gather_from_environment
from nemo_steerlm.pipeline.steps.taught_labels import drops_labels, label_support, write_with_dropout
from nemo_steerlm.pipeline.train_spec import BEST_CONTROL, ParallelSpec, SteerTrainSpec, TrainSpec

TRAINER = "nemo_steerlm.training.train"
LAUNCHER = "nemo_steerlm.training.launch"
"""torchrun, with the exit code and the sentence of the rank that failed."""
EXPERIMENT = "experiment"
"""Name and log folder of the training: TensorBoard's files and, while it runs, checkpoints."""
CONTROL_JOB = "control_job.json"
"""What is asked at each validation where the step is chosen by control."""
RECORDS = "records"
"""Folder of the training records while it runs, where labels are left out of them."""


def train(run: Run) -> dict[str, Any] | None:
    """Train, save ``model.nemo`` and export it. Returns None on every node but the first.

    Raises:
        UsageError: If the stage trains nothing.
    """
    training = run.stage.training
    if training is None:
        raise UsageError(f"stage {run.stage.name} trains nothing")
    described = run.folder / "description"
    described.mkdir(exist_ok=True)
    taught_info(run, training).save(described)
    if training.spec.keep == BEST_CONTROL:
        write_control_job(run, described / CONTROL_JOB)
    parallel = training.spec.parallel
    command = [*launcher(parallel), *overrides(run, training, described / FILE_NAME)]
    gather_from_environment(parallel.nodes, node_rank(), lambda here: run.progress(here, parallel.nodes, phase="nodes"))
    call("trainer", run, command, env=_environment(parallel))
    if node_rank() > 0:
        return None
    shutil.rmtree(run.folder / CHECKPOINT, ignore_errors=True)  # of an earlier training, where it was a folder
    (run.folder / EXPERIMENT / "checkpoints" / f"{EXPERIMENT}.nemo").replace(run.folder / CHECKPOINT)
    for folder in (f"{EXPERIMENT}/checkpoints", f"{EXPERIMENT}/tokens", RECORDS):  # tokens are elsewhere where overrides say so
        shutil.rmtree(run.folder / folder, ignore_errors=True)
    metrics: dict[str, Any] = msgspec.json.decode((run.folder / "metrics.json").read_bytes())
    return {name: metrics[name] for name in ("steps", "validation_loss", "attributes", "tokens_per_second")}


def model_info(run: Run, training: Training) -> ModelInfo:
    """What the trained model will say of itself."""
    spec = run.pipeline.spec
    return ModelInfo(
        kind=training.role,
        attributes=spec.attributes.schema_(),
        tokens=spec.model.chat_tokens.tokens(),
        layout=spec.model.layout,
        system=SYSTEM_PROMPT if spec.data.system is None else spec.data.system,
    )


def taught_info(run: Run, training: Training) -> ModelInfo:
    """``model_info`` with what a SteerLM model is taught under, once its training records are written."""
    info = model_info(run, training)
    if training.role != "steer":
        return info
    source, taught = run.input(training.data.stage, training.data.train), training_records(run, training)
    if taught != source and isinstance(training.spec, SteerTrainSpec):
        taught.parent.mkdir(exist_ok=True)
        write_with_dropout(source, taught, training.spec, info.attributes)
    partial = isinstance(training.spec, SteerTrainSpec) and training.spec.attribute_dropout > 0
    support = label_support(source, taught, info.attributes, partial=partial)
    if training.base_stage:
        before = ModelInfo.load(run.input(training.base_stage, MODEL_FOLDER)).support
        if isinstance(before, LabelSupport):
            support = before + support
    return msgspec.structs.replace(info, support=support)


def training_records(run: Run, training: Training) -> Path:
    """The file that is learned from: the stage's input, or its copy without some labels."""
    if drops_labels(training.spec):
        return run.folder / RECORDS / training.data.train
    return run.input(training.data.stage, training.data.train)


def launcher(parallel: ParallelSpec) -> list[str]:
    """``python -m …``: the trainer itself, or torchrun starting it. On several nodes the rendezvous comes from ``PET_*`` variables."""
    if parallel.nodes * parallel.devices == 1:
        return [TRAINER]
    rendezvous = ["--standalone"] if parallel.nodes == 1 else [f"--nnodes={parallel.nodes}"]
    return [LAUNCHER, *rendezvous, f"--nproc-per-node={parallel.devices}", "-m", TRAINER]


def sizes(spec: PipelineSpec, how: TrainSpec) -> dict[str, Any]:
    """Those of the trainer's keys that decide how much memory a training takes; ``how.overrides`` may have more."""
    parallel = how.parallel
    values: dict[str, Any] = {
        "trainer.num_nodes": parallel.nodes,
        "trainer.devices": parallel.devices,
        "trainer.precision": how.precision,
        "model.tensor_model_parallel_size": parallel.tensor,
        "model.pipeline_model_parallel_size": parallel.pipeline,
        "model.encoder_seq_length": spec.model.max_sequence_length,
    }
    for dataset in ("train_ds", "validation_ds"):
        values[f"model.data.{dataset}.global_batch_size"] = how.global_batch_size
        values[f"model.data.{dataset}.micro_batch_size"] = how.micro_batch_size
        values[f"model.data.{dataset}.max_seq_length"] = spec.model.max_sequence_length
    if parallel.device_memory is not None:
        values["steerlm.device_memory_gb"] = float(amount(parallel.device_memory)) / (1 << 30)
    if how.lora:
        values["model.peft.peft_scheme"] = "lora"
        values["model.peft.lora_tuning.adapter_dim"] = how.lora.rank
        values["model.peft.lora_tuning.target_modules"] = f"[{','.join(how.lora.target_modules)}]"
        values["model.peft.lora_tuning.alpha"] = how.lora.rank if how.lora.alpha is None else how.lora.alpha
        values["model.peft.lora_tuning.adapter_dropout"] = how.lora.dropout
        if how.lora.layer_selection:
            values["model.peft.lora_tuning.layer_selection"] = f"[{','.join(map(str, how.lora.layer_selection))}]"
    return values


def overrides(run: Run, training: Training, info: Path) -> list[str]:
    """The trainer's arguments: train_gpt_sft's keys."""
    spec, how, data = run.pipeline.spec, training.spec, training.data
    values = sizes(spec, how) | {
        "trainer.sft.max_steps": how.max_steps,
        "trainer.sft.max_epochs": how.max_epochs,
        "trainer.sft.val_check_interval": how.validate_every,
        "trainer.sft.save_interval": how.validate_every,
        "trainer.sft.save_minutes": how.save_every_minutes or "null",
        "trainer.sft.limit_val_batches": how.limit_validation_batches or 1.0,
        "exp_manager.explicit_log_dir": run.folder / EXPERIMENT,
        "exp_manager.name": EXPERIMENT,
        "exp_manager.checkpoint_callback_params.save_best_model": how.keep != "last",
        "model.restore_from_path": base_model(run, training),
        "model.seed": how.seed,
        "model.data.chat": True,
        "model.data.train_ds.file_path": training_records(run, training),
        "model.data.validation_ds.file_path": run.input(data.stage, data.validation),
        "model.optim.lr": how.learning_rate,
        "model.optim.weight_decay": how.weight_decay,
        "model.optim.sched.warmup_steps": how.warmup_steps,
        "model.optim.sched.constant_steps": how.constant_steps,
        "model.optim.sched.min_lr": how.min_learning_rate,
        "steerlm.info": info,
        "steerlm.export_dir": run.folder / MODEL_FOLDER,
        "steerlm.metrics_file": run.folder / "metrics.json",
        "steerlm.progress": True,
        "steerlm.stage": run.stage.name,
    }
    if how.keep == BEST_CONTROL:
        values["exp_manager.checkpoint_callback_params.monitor"] = "val_control"
        values["steerlm.control_job"] = info.with_name(CONTROL_JOB)
    return trainer_arguments(values, how)


def trainer_arguments(values: Mapping[str, Any], how: TrainSpec) -> list[str]:
    """Keys and values as the trainer reads them, and what the manifest says in the trainer's own words."""
    return [f"{key}={_quoted(value)}" for key, value in values.items()] + list(how.overrides)


def base_model(run: Run, training: Training) -> Path:
    """What the training starts from: the base model, or in a bootstrap round the model that was sampled.

    Raises:
        UsageError: If it names neither.
    """
    if training.base_stage:
        return run.input(training.base_stage, CHECKPOINT)
    if training.base_reference:
        return run.resolve(training.base_reference, "model")
    raise UsageError(f"stage {run.stage.name} has nothing to start from")


def _quoted(value: object) -> str:
    """As Hydra's grammar reads it: paths may hold characters that mean something there."""
    if isinstance(value, Path):
        escaped = str(value).replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    return str(value)


def _environment(parallel: ParallelSpec) -> dict[str, str]:
    """Torchrun gives each process one thread and little time to end; share the cores out, and wait, unless somebody chose."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    grace = grace_seconds()
    return {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // parallel.devices))),
        # After SIGTERM torchrun would kill the ranks in 30 seconds; a checkpoint may take as long as a pod has, less what torchrun needs.
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": os.environ.get(
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(int(max(grace - LAUNCHER_SECONDS, grace / 2)))
        ),
    }


def losses(metrics_file: Path) -> list[float]:
    """Training loss by step, from a finished training's metrics."""
    steps = msgspec.json.decode(metrics_file.read_bytes())["train"]
    return [float(step["loss"]) for step in steps if step["loss"] is not None]  # null: it was not a number
