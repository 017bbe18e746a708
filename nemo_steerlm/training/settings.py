"""Every setting of a training that can be wrong by itself or beside another: found before records are read. Imports neither NeMo nor torch.

One line a mistake: the key, what was found, what to write instead.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from nemo_steerlm.core.errors import ConfigError, nearest, shown
from nemo_steerlm.megatron.machine import Machine
from nemo_steerlm.megatron.model_config import Parallelism
from nemo_steerlm.training.arithmetic import check_optimizer, precision_of
from nemo_steerlm.training.batches import Sizes

logger = logging.getLogger(__name__)

CONF = Path(__file__).parent / "conf"
LORA_TARGETS = ("attention_qkv", "attention_dense", "mlp_fc1", "mlp_fc2", "attention", "mlp", "all")
SCHEDULES = (
    "WarmupPolicy",
    "WarmupHoldPolicy",
    "SquareAnnealing",
    "CosineAnnealing",
    "NoamAnnealing",
    "NoamHoldAnnealing",
    "WarmupAnnealing",
    "InverseSquareRootAnnealing",
    "T5InverseSquareRootAnnealing",
    "SquareRootAnnealing",
    "PolynomialDecayAnnealing",
    "PolynomialHoldDecayAnnealing",
)
"""NeMo's schedules whose rate follows from the step."""


def _whole(low: int) -> tuple[str, Callable[[Any], bool]]:
    return f"a whole number of at least {low}", lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= low


def _number(v: Any) -> bool:
    return isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)


def _steps(low: int) -> tuple[str, Callable[[Any], bool]]:
    def fits(v: Any) -> bool:
        if isinstance(v, bool):
            return False
        return v >= low if isinstance(v, int) else isinstance(v, float) and (0 < v <= 1 or (low == 0 and v == 0))

    return f"a whole number of at least {low}, or a fraction of an epoch such as 0.5", fits


def _optional(rule: tuple[str, Callable[[Any], bool]]) -> tuple[str, Callable[[Any], bool]]:
    return f"{rule[0]}, or null", lambda v: v is None or rule[1](v)


_FLAG = ("true or false", lambda v: isinstance(v, bool))
_RATE = ("a number above 0", lambda v: _number(v) and v > 0)
_NOT_NEGATIVE = ("a number of at least 0", lambda v: _number(v) and v >= 0)
_PROBABILITY = ("a number from 0 to below 1", lambda v: _number(v) and 0 <= v < 1)
_PATH = ("one path", lambda v: v is None or (isinstance(v, str) and v != ""))


def _list_of(what: str, fits: Callable[[Any], bool]) -> tuple[str, Callable[[Any], bool]]:
    return f"a list of {what}", lambda v: isinstance(v, ListConfig) and len(v) > 0 and all(x is not None and fits(x) for x in v)


_BETAS = (
    "two numbers from 0 to below 1, such as [0.9,0.98]",
    lambda v: isinstance(v, ListConfig) and len(v) == 2 and all(map(_PROBABILITY[1], v)),
)

RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "trainer.devices": _whole(1),
    "trainer.num_nodes": _whole(1),
    "trainer.sft.max_epochs": _whole(1),
    "trainer.sft.max_steps": ("a whole number of at least 1, or -1 for as many as max_epochs has", lambda v: v == -1 or _whole(1)[1](v)),
    "trainer.sft.val_check_interval": _steps(1),
    "trainer.sft.save_interval": _steps(1),
    "trainer.sft.save_minutes": _optional(_RATE),
    "trainer.sft.limit_train_batches": _steps(1),
    "trainer.sft.limit_val_batches": _steps(0),
    "trainer.sft.gradient_clip_val": _optional(_NOT_NEGATIVE),
    "trainer.sft.skipped_steps_limit": _whole(0),
    "trainer.sft.early_stopping_patience": _optional(_whole(1)),
    "exp_manager.resume_if_exists": _FLAG,
    "exp_manager.create_checkpoint_callback": _FLAG,
    "exp_manager.explicit_log_dir": _PATH,
    "exp_manager.checkpoint_callback_params.save_top_k": _whole(1),
    "exp_manager.checkpoint_callback_params.save_best_model": _FLAG,
    "exp_manager.checkpoint_callback_params.save_nemo_on_train_end": _FLAG,
    "exp_manager.checkpoint_callback_params.mode": ("min or max", lambda v: v in ("min", "max")),
    "model.seed": _whole(0),
    "model.tensor_model_parallel_size": _whole(1),
    "model.pipeline_model_parallel_size": _whole(1),
    "model.context_parallel_size": _whole(1),
    "model.sequence_parallel": _FLAG,
    "model.megatron_amp_O2": _FLAG,
    "model.encoder_seq_length": _optional(_whole(1)),
    "model.restore_from_path": _PATH,
    "model.resume_from_checkpoint": _PATH,
    "model.hidden_dropout": _PROBABILITY,
    "model.attention_dropout": _PROBABILITY,
    "model.ffn_dropout": _PROBABILITY,
    "model.peft.lora_tuning.adapter_dim": _whole(1),
    "model.peft.lora_tuning.alpha": _RATE,
    "model.peft.lora_tuning.adapter_dropout": _PROBABILITY,
    "model.data.train_ds.file_path": _PATH,
    "model.data.validation_ds.file_path": _PATH,
    "model.data.train_ds.file_names": _optional(_list_of("paths", _PATH[1])),
    "model.data.train_ds.weights": _optional(_list_of("numbers above 0", _RATE[1])),
    "model.data.train_ds.shuffle": _FLAG,
    **{f"model.data.{ds}.{size}": _whole(1) for ds in ("train_ds", "validation_ds") for size in ("micro_batch_size", "global_batch_size")},
    **{f"model.data.{ds}.max_seq_length": _optional(_whole(1)) for ds in ("train_ds", "validation_ds")},
    "model.optim.lr": _RATE,
    "model.optim.weight_decay": _NOT_NEGATIVE,
    "model.optim.betas": _BETAS,
    "model.optim.eps": _RATE,
    "model.optim.sched.warmup_steps": _optional(_whole(0)),
    "model.optim.sched.constant_steps": _optional(_whole(0)),
    "model.optim.sched.min_lr": _NOT_NEGATIVE,
    "steerlm.info": _PATH,
    "steerlm.control_job": _PATH,
    "steerlm.export_dir": _PATH,
    "steerlm.metrics_file": _PATH,
    "steerlm.token_dir": _PATH,
    "steerlm.progress": _FLAG,
    "steerlm.nemo_folder_above_gb": _NOT_NEGATIVE,
    "steerlm.device_memory_gb": _optional(_RATE),
}
"""What each key may be."""

INSTEAD = {
    "trainer.max_steps": "trainer.sft.max_steps",
    "trainer.max_epochs": "trainer.sft.max_epochs",
    "trainer.gradient_clip_val": "trainer.sft.gradient_clip_val",
    "trainer.val_check_interval": "trainer.sft.val_check_interval",
    "trainer.limit_val_batches": "trainer.sft.limit_val_batches",
    "trainer.max_time": "exp_manager.max_time_per_run",
}
"""Lightning's keys, which the loop does not read, and those that it reads."""


def check(cfg: DictConfig, machine: Machine) -> Parallelism:
    """How ``cfg`` is spread over processes. Raises ConfigError for the first setting that cannot work."""
    for key, (what, fits) in RULES.items():
        if OmegaConf.is_missing(cfg, key):
            continue
        value = OmegaConf.select(cfg, key, default=_ABSENT)
        if value is not _ABSENT and not fits(value):
            raise ConfigError(f"{key}={shown(plain(value)) if value is not None else 'null'}: write {what}")
    _refuse_unread(cfg)
    _check_files(cfg.model.data)
    precision_of(cfg.trainer.precision)
    check_optimizer(cfg.model.optim.name, o2=cfg.model.megatron_amp_O2)
    _check_schedule(cfg.model.optim)
    _check_recomputation(cfg.model)
    _check_peft(cfg.model.peft)
    _check_loggers(cfg.exp_manager)
    deadline_seconds(cfg.exp_manager.max_time_per_run)
    return parallel_layout(cfg, machine)


_ABSENT = object()


def plain(value: Any) -> Any:
    """A part of a configuration as plain data."""
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _refuse_unread(cfg: DictConfig) -> None:
    """Keys that would be passed over although whoever wrote them meant something."""
    for key, instead in INSTEAD.items():
        given = OmegaConf.select(cfg, key)
        if given is not None and given != OmegaConf.select(cfg, instead):
            raise ConfigError(f"{key}={shown(plain(given))} is not read; write {instead}")
    defaults = OmegaConf.load(CONF / "gpt_sft.yaml")
    for section in ("trainer", "trainer.sft", "exp_manager", "model.data", "model.data.train_ds", "model.data.validation_ds", "steerlm"):
        known = list(OmegaConf.select(defaults, section))
        for key in OmegaConf.select(cfg, section):
            if key not in known:
                raise ConfigError(f"{section}.{key}: unknown key; {nearest(str(key), known)}known: {', '.join(known)}")


def _check_files(data: DictConfig) -> None:
    files, weights = data.train_ds.file_names, data.train_ds.weights
    if files is not None and not OmegaConf.is_missing(data.train_ds, "file_path"):
        raise ConfigError("model.data.train_ds: file_path and file_names are both given; leave one out")
    if weights is not None and len(weights) != len(files or ()):
        raise ConfigError(f"model.data.train_ds.weights={plain(weights)}: write one for each of file_names")
    if data.validation_ds.file_names is not None or data.validation_ds.weights is not None:
        raise ConfigError("model.data.validation_ds: validation reads one file, every record once; write file_path")


def _check_schedule(optim: DictConfig) -> None:
    sched = optim.get("sched")
    if sched is None:
        return
    if sched.get("name") not in SCHEDULES:
        name = str(sched.get("name"))
        raise ConfigError(f"model.optim.sched.name={name}: {nearest(name, SCHEDULES)}known: {', '.join(SCHEDULES)}")
    floor = sched.get("min_lr", 0.0)
    if optim.lr <= floor:
        raise ConfigError(f"model.optim.lr={optim.lr} must be above model.optim.sched.min_lr={floor}")


def _check_recomputation(model: DictConfig) -> None:
    prefix = "model.activations_checkpoint"
    kind, method, layers = (model.get(f"activations_checkpoint_{name}") for name in ("granularity", "method", "num_layers"))
    if kind not in (None, "selective", "full"):
        raise ConfigError(f"{prefix}_granularity={kind}: write null, selective or full")
    if kind == "full" and (method not in ("uniform", "block") or not _whole(1)[1](layers)):
        raise ConfigError(f"{prefix}_granularity=full: write {prefix}_method=uniform and {prefix}_num_layers=1 beside it")


def _check_peft(peft: DictConfig) -> None:
    if peft.restore_from_path is not None:
        raise ConfigError("model.peft.restore_from_path: adapters are merged when a training ends; give that .nemo as restore_from_path")
    if peft.peft_scheme not in (None, "none", "lora"):
        raise ConfigError(f"model.peft.peft_scheme={peft.peft_scheme}: write lora or none")


def _check_loggers(manager: DictConfig) -> None:
    if manager.create_wandb_logger and manager.wandb_logger_kwargs.project is None:
        raise ConfigError("exp_manager.create_wandb_logger needs exp_manager.wandb_logger_kwargs.project")
    if manager.create_mlflow_logger and not importlib.util.find_spec("mlflow"):
        raise ConfigError("exp_manager.create_mlflow_logger: MLflow is not installed: pip install mlflow")


def parallel_layout(cfg: DictConfig, machine: Machine) -> Parallelism:
    """Check sizes against each other and against the launcher. Raises ConfigError."""
    model = cfg.model
    layout = Parallelism(
        world_size=cfg.trainer.devices * cfg.trainer.num_nodes,
        tensor=model.tensor_model_parallel_size,
        pipeline=model.pipeline_model_parallel_size,
        context=model.context_parallel_size,
    )
    if layout.context > 1 and not machine.transformer_engine:
        raise ConfigError(
            f"model.context_parallel_size={layout.context}: context parallelism exchanges keys and values inside TransformerEngine's "
            "attention, which is not installed here; write 1"
        )
    sizes = layout.tensor * layout.pipeline * layout.context
    if layout.world_size % sizes:
        raise ConfigError(
            f"trainer.devices={cfg.trainer.devices} × trainer.num_nodes={cfg.trainer.num_nodes} is no multiple of "
            f"tensor_model_parallel_size={layout.tensor} × pipeline_model_parallel_size={layout.pipeline}"
            + (f" × context_parallel_size={layout.context}" if layout.context > 1 else "")
        )
    launched = os.environ.get("WORLD_SIZE")
    if launched and int(launched) != layout.world_size:
        raise ConfigError(
            f"the launcher started {launched} processes, but trainer.devices={cfg.trainer.devices} × "
            f"trainer.num_nodes={cfg.trainer.num_nodes} are configured"
        )
    if model.sequence_parallel and layout.tensor == 1:
        raise ConfigError("model.sequence_parallel=true shares sequences among tensor-parallel ranks, and there is one; write false")
    for name in ("train_ds", "validation_ds"):
        sizes_of(cfg, name, layout).check(f"model.data.{name}")
    return layout


def sizes_of(cfg: DictConfig, name: str, layout: Parallelism, data_parallel_rank: int = 0) -> Sizes:
    """Batch sizes of ``model.data.<name>``."""
    section = cfg.model.data[name]
    return Sizes(
        micro_batch_size=section.micro_batch_size,
        global_batch_size=section.global_batch_size,
        data_parallel_size=layout.data,
        data_parallel_rank=data_parallel_rank,
    )


def check_adapters(model: DictConfig, *, transformer_engine: bool = False) -> None:
    """Raise ConfigError where ``model.peft`` asks for adapters in places that are not there, or for such as cannot be merged."""
    if model.peft.peft_scheme in (None, "none"):
        return
    tuning, key = model.peft.lora_tuning, "model.peft.lora_tuning"
    if model.get("num_moe_experts"):
        raise ConfigError(
            f"model.peft.peft_scheme=lora: the model has {model.num_moe_experts} experts a layer; train it with peft_scheme=none"
        )
    if model.get("sequence_parallel") and not transformer_engine:
        raise ConfigError(
            "model.sequence_parallel=true: NeMo's adapters of shared sequences want TransformerEngine, which is not installed here; "
            "write false"
        )
    targets = tuning.target_modules if OmegaConf.is_list(tuning.target_modules) else [tuning.target_modules]
    for target in targets:
        if target not in LORA_TARGETS:
            raise ConfigError(f"{key}.target_modules: unknown {target}; known: {', '.join(LORA_TARGETS)}")
    for number in tuning.layer_selection or ():
        if not 1 <= number <= model.num_layers:
            raise ConfigError(f"{key}.layer_selection: there is no layer {number}; they are numbered 1 to {model.num_layers}")
    if tuning.get("variant", "nemo") != "nemo" or tuning.weight_tying:
        raise ConfigError(f"{key}: only variant=nemo without weight_tying can be merged")


def fit_schedule(sched: DictConfig, max_steps: int) -> None:
    """Shorten the warm-up, and leave out the constant end, where ``max_steps`` leave no steps between the two.

    Upstream's schedule would be at ``min_lr`` for all of the training but its warm-up: gpt_sft.yaml's ``constant_steps`` is 1000.
    """
    with open_dict(sched):
        sched.max_steps = max_steps
        warmup, constant = sched.get("warmup_steps") or 0, sched.get("constant_steps") or 0
        if warmup + constant >= max_steps:
            sched.constant_steps, sched.warmup_steps = 0, min(warmup, max_steps // 10)
            logger.info(
                "%d steps are fewer than warmup_steps=%d and constant_steps=%d: %d and 0 take their place",
                max_steps,
                warmup,
                constant,
                sched.warmup_steps,
            )


def deadline_seconds(limit: object) -> int | None:
    """``DD:HH:MM:SS`` as seconds; None for no limit. Raises ConfigError for anything else."""
    if limit is None:
        return None
    parts = str(limit).split(":")
    if len(parts) != 4 or not all(part.isdigit() for part in parts):
        raise ConfigError(f"exp_manager.max_time_per_run={limit}: write DD:HH:MM:SS")
    days, hours, minutes, seconds = map(int, parts)
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
