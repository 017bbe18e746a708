"""Which step's weights a training ends with, and when it has nothing more to gain.

By validation loss, by an attribute's figure (value models), or by control error (SteerLM models; the paper chooses checkpoints by the value
model as well, arXiv:2310.05344 section 4).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from omegaconf import DictConfig

from nemo_steerlm.core.errors import ConfigError, nearest
from nemo_steerlm.training.checkpoints import TrainingState

CONTROL = "val_control"
"""The mean control error of answers to held-out prompts, as a value model reads them (``steerlm.control_job``)."""
FIGURES = {"mae": "min", "accuracy": "max"}


@dataclasses.dataclass(frozen=True, slots=True)
class Monitor:
    """A figure of a validation. ``val_loss``, ``val_control``, or an attribute's as TensorBoard names it: ``val/quality/mae``."""

    name: str
    attribute: str | None
    figure: str
    smaller_is_better: bool
    keep_best: bool
    patience: int | None
    """Validations without a better figure, after which training ends; None: it goes on."""

    @classmethod
    def of(cls, cfg: DictConfig, *, validates: bool, attributes: list[str]) -> Monitor:
        """What ``exp_manager.checkpoint_callback_params`` says. Raises ConfigError where it cannot be measured."""
        callback, patience = cfg.exp_manager.checkpoint_callback_params, cfg.trainer.sft.early_stopping_patience
        name, key = str(callback.monitor), "exp_manager.checkpoint_callback_params.monitor"
        attribute, figure = _parse(name, key)
        used = callback.save_best_model or patience is not None
        if used and not validates:
            raise ConfigError("save_best_model and early_stopping_patience want validations: set model.data.validation_ds.file_path")
        if used and attribute is not None and attribute not in attributes:
            raise ConfigError(
                f"{key}={name}: unknown attribute {attribute}; {nearest(attribute, attributes)}known: {', '.join(attributes)}"
            )
        if used and name == CONTROL and cfg.steerlm.control_job is None:
            raise ConfigError(f"{key}={name}: nothing says what is to be asked; set steerlm.control_job")
        mode = FIGURES.get(figure, "min")
        if used and callback.mode != mode:
            raise ConfigError(f"exp_manager.checkpoint_callback_params.mode={callback.mode}: {name} is better the other way; write {mode}")
        return cls(name, attribute, figure, mode == "min", bool(callback.save_best_model), patience)

    def note(self, state: TrainingState, result: dict[str, Any]) -> bool:
        """Remember a validation's figure in ``state``; whether it is the best so far. One that is not a number never is."""
        value = result.get(self.figure) if self.attribute is None else result["attributes"].get(self.attribute, {}).get(self.figure)
        better = value is not None and (
            state.best_value is None or (value < state.best_value if self.smaller_is_better else value > state.best_value)
        )
        if better:
            state.best_step, state.best_value, state.validations_since_best = state.step, value, 0
        else:
            state.validations_since_best += 1
        return better

    def exhausted(self, state: TrainingState) -> bool:
        """Whether training has gone on long enough without a better figure."""
        return self.patience is not None and state.validations_since_best >= self.patience


def _parse(name: str, key: str) -> tuple[str | None, str]:
    if name in ("val_loss", "val/loss"):
        return None, "loss"
    if name == CONTROL:
        return None, "control"
    parts = name.split("/")
    if len(parts) != 3 or parts[0] != "val" or parts[2] not in FIGURES:
        known = f"val_loss, {CONTROL}, or an attribute's figure such as val/quality/mae or val/quality/accuracy"
        raise ConfigError(f"{key}={name}: write {known}")
    return parts[1], parts[2]
