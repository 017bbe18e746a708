"""What a training tells the world: progress lines for executors, TensorBoard, Weights & Biases, MLflow, and a file of metrics."""

from __future__ import annotations

import collections
import json
import sys
from pathlib import Path
from typing import Any, TextIO, cast

import msgspec
from omegaconf import DictConfig, OmegaConf

from nemo_steerlm.core.files import atomic_write
from nemo_steerlm.core.processes import LAUNCHER_SECONDS, grace_seconds
from nemo_steerlm.training.checkpoints import TrainingState

STEPS_OF_SPEED = 20
"""So many of the last steps say how fast it is and how long it will take."""


class Reporter:
    """Only rank 0 has one that does anything."""

    def __init__(self, cfg: DictConfig, log_dir: Path, stage: str, total: int, *, active: bool, peak: float | None = None) -> None:
        """``peak`` is what all GPUs of the training can compute, in operations a second, where that is known."""
        self._stage = cfg.steerlm.stage or stage
        self._total = total
        self._active = active
        self._told_of_grace = False
        self._peak = peak
        self._recent: collections.deque[tuple[float, float, float]] = collections.deque(maxlen=STEPS_OF_SPEED)
        self._progress = active and cfg.steerlm.progress
        self._metrics_file = cfg.steerlm.metrics_file if active else None
        self._loggers = _loggers(cfg, log_dir) if active else []

    def step(self, entry: dict[str, float | None], operations: float = 0.0, **known: float) -> None:
        """One training step. What is not a number is None, in progress lines null.

        Args:
            entry: Its figures.
            operations: What its products took, in floating-point operations.
            known: For progress lines alone: ``saved``, the step of the last checkpoint, and ``stop_seconds``, how long it has taken at most
                to end a step and save.
        """
        step, loss = int(entry["step"] or 0), entry["loss"]
        self._recent.append((entry["tokens"] or 0.0, entry["seconds"] or 0.0, operations))
        tokens, seconds, computed = (sum(column) for column in zip(*self._recent, strict=True))
        speed = {
            "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
            "seconds_left": round((self._total - step) * seconds / len(self._recent), 1),
        }
        if self._peak and seconds:
            speed["mfu"] = round(computed / seconds / self._peak, 4)
        if self._progress:
            line = {"steerlm": "progress", "stage": self._stage, "done": step, "total": self._total}
            self._print_line(json.dumps({**line, "loss": None if loss is None else round(loss, 6), **speed, **known}), sys.stdout)
        elif self._active and sys.stderr.isatty():
            shown = "not a number" if loss is None else f"{loss:.4f}"
            mfu = f", MFU {speed['mfu']:.2f}" if "mfu" in speed else ""
            self._print_line(
                f"step {step}/{self._total}: loss {shown}, {speed['tokens_per_second']} tokens/s{mfu}, {speed['seconds_left']:.0f} s left"
            )
        self._log({f"train/{name}": v for name, v in {**entry, **speed}.items() if name != "step" and v is not None}, step)

    def saved(self, stop_seconds: float) -> None:
        """Say once where a checkpoint takes longer than this process has after SIGTERM."""
        has = grace_seconds() - LAUNCHER_SECONDS
        if stop_seconds > has and not self._told_of_grace:
            self._told_of_grace = True
            self._print_line(
                f"after SIGTERM it takes {stop_seconds:.0f} s to end a step and save, and there are {has:.0f} s: what comes after the last "
                "checkpoint would be lost. Raise runPolicy.gracePeriodSeconds, or save more often: saveEveryMinutes"
            )

    def validation(self, step: int, result: dict[str, Any]) -> None:
        """One validation."""
        flat = {"val/loss": result["loss"], **({"val/control": result["control"]} if "control" in result else {})}
        for name, figures in result["attributes"].items():
            flat |= {f"val/{name}/{figure}": figures[figure] for figure in ("accuracy", "mae")}
        self._log(flat, step)
        attributes = ", ".join(f"{name} {f['accuracy']:.2f}/{f['mae']:.2f}" for name, f in result["attributes"].items())
        control = f", control error {result['control']:.3f} steps" if "control" in result else ""
        self._print_line(
            f"step {step}: validation loss {result['loss']:.4f}{control}" + (f"; accuracy/MAE: {attributes}" if attributes else "")
        )

    def finish(self, state: TrainingState, **more: Any) -> None:
        """Write the metrics file and close the loggers."""
        if self._metrics_file:
            seconds = sum(entry["seconds"] or 0.0 for entry in state.train)
            tokens = sum(entry["tokens"] or 0.0 for entry in state.train)
            metrics = {
                "stage": self._stage,
                "steps": state.step,
                "consumed_samples": state.consumed_samples,
                "tokens_per_second": tokens / seconds if seconds else None,
                "skipped_steps": sum(1 for entry in state.train if entry.get("skipped")),
                "best_step": state.best_step,
                "validation_loss": state.validation[-1]["loss"] if state.validation else None,
                "attributes": state.validation[-1]["attributes"] if state.validation else {},
                **more,
                "train": state.train,
                "validation": state.validation,
            }
            with atomic_write(self._metrics_file) as file:
                file.write(msgspec.json.format(msgspec.json.encode(metrics), indent=2).decode() + "\n")
        for logger in self._loggers:
            logger.finalize("success")

    @staticmethod
    def _print_line(line: str, stream: TextIO | None = None) -> None:
        (stream or sys.stderr).write(line + "\n")
        (stream or sys.stderr).flush()

    def _log(self, figures: dict[str, float | None], step: int) -> None:
        for logger in self._loggers:
            logger.log_metrics(figures, step)


def _loggers(cfg: DictConfig, log_dir: Path) -> list[Any]:
    manager = cfg.exp_manager
    loggers: list[Any] = []
    if manager.create_tensorboard_logger:
        from lightning.pytorch.loggers import TensorBoardLogger

        loggers.append(TensorBoardLogger(save_dir=str(log_dir), name="", version="tensorboard"))
    if manager.create_wandb_logger:
        from lightning.pytorch.loggers import WandbLogger

        loggers.append(WandbLogger(save_dir=str(log_dir), **_given(manager.wandb_logger_kwargs)))
    if manager.create_mlflow_logger:
        from lightning.pytorch.loggers import MLFlowLogger

        # Where ``tracking_uri`` or MLFLOW_TRACKING_URI says, or in files.
        loggers.append(MLFlowLogger(**{"save_dir": str(log_dir / "mlruns"), **_given(manager.mlflow_logger_kwargs)}))
    return loggers


def _given(kwargs: DictConfig) -> dict[str, Any]:
    plain = cast(dict[str, Any], OmegaConf.to_container(kwargs, resolve=True))
    return {key: value for key, value in plain.items() if value is not None}
