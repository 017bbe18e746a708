"""The stages' names. They are made here and taken apart nowhere: what a stage is for, its object says in fields."""

from __future__ import annotations

from nemo_steerlm.core.objectives import ModelKind

PREPARE = "prepare"
ANNOTATE = "annotate"
EVALUATE = "evaluate"
MAX_ROUNDS = 32
"""Most bootstrap rounds a pipeline may have."""

_TRAINING: dict[ModelKind, str] = {"value": "train-value", "steer": "train-steer"}


def training(role: ModelKind, round_: int = 0) -> str:
    """The training of a model; round 0 starts from the base model, later ones are bootstrap rounds of the SteerLM model."""
    return f"bootstrap-{round_}-train" if round_ else _TRAINING[role]


def sampling(round_: int) -> str:
    """The sampling of a bootstrap round, counted from 1."""
    return f"bootstrap-{round_}-sample"


def trainings(role: ModelKind) -> tuple[str, ...]:
    """Every name that the training of such a model may have, the last round first."""
    rounds = range(MAX_ROUNDS, 0, -1) if role == "steer" else ()
    return (*(training(role, number) for number in rounds), training(role))


PATTERN = f"^({'|'.join((PREPARE, training('value'), ANNOTATE, training('steer'), 'bootstrap-[0-9]+-(sample|train)', EVALUATE))})$"
"""Regular expression of all names, as the cluster's schema checks ``restart.fromStage``."""
KNOWN = ", ".join((PREPARE, training("value"), ANNOTATE, training("steer"), "bootstrap-N-sample", "bootstrap-N-train", EVALUATE))
"""All names, for ``--help``."""
