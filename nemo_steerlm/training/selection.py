"""Which step's weights a training ends with, and when it has nothing more to gain: by validation loss, or by an attribute's figure."""

from __future__ import annotations

import dataclasses
from typing import Any

from omegaconf import DictConfig

from nemo_steerlm.core.errors import ConfigError, nearest
from nemo_steerlm.training.checkpoints import TrainingState

FIGURES = {"mae": "min", "accuracy": "max"}


@dataclasses.dataclass(frozen=True, slots=True)
class Monitor:
    """A figure of a validation. ``val_loss``, or an attribute's as TensorBoard names it: ``val/quality/mae``."""

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
        mode = FIGURES.get(figure, "min")
        if used and callback.mode != mode:
            raise ConfigError(f"exp_manager.checkpoint_callback_params.mode={callback.mode}: {name} is better the other way; write {mode}")
        return cls(name, attribute, figure, mode == "min", bool(callback.save_best_model), patience)

    def note(self, state: TrainingState, result: dict[str, Any]) -> bool:
        """Remember a validation's figure in ``state``; whether it is the best so far. One that is not a number never is."""
        value = result["loss"] if self.attribute is None else result["attributes"].get(self.attribute, {}).get(self.figure)
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
    parts = name.split("/")
    if len(parts) != 3 or parts[0] != "val" or parts[2] not in FIGURES:
        raise ConfigError(f"{key}={name}: write val_loss, or an attribute's figure such as val/quality/mae or val/quality/accuracy")
    return parts[1], parts[2]
