"""The stages there are, in the order they run. Graph, manifest, ``--help`` and the cluster's schema follow from this table.

A new stage is a file in ``pipeline/stages`` that describes it, one in ``pipeline/steps`` that does the work, and an entry here. This module
imports neither: descriptions read the manifest, and the manifest takes the names from here. Names are taken apart nowhere: what a stage is
for, its object says in fields.
"""

from __future__ import annotations

import msgspec

from nemo_steerlm.core.objectives import ModelKind

MAX_ROUNDS = 32
"""Most bootstrap rounds a pipeline may have."""
_ROUND = "-N-"


class StageEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A stage, or one of every bootstrap round."""

    name: str
    """Its name. ``-N-`` stands for the number of a round: such a stage, with those beside it, is there once per bootstrap round."""
    describe: str
    """``MODULE:FUNCTION`` that takes the pipeline's spec and the stage's ``Place``, and returns its ``Stage``."""
    trains: ModelKind | None = None
    """Which model, if it is a training."""

    @property
    def each_round(self) -> bool:
        """Whether every bootstrap round has one."""
        return _ROUND in self.name

    def named(self, number: int | None) -> str:
        """The name of its stage in round ``number``, counted from 1; None for stages outside of rounds."""
        return self.name if number is None else self.name.replace(_ROUND, f"-{number}-")


PREPARE = "prepare"
EVALUATE = "evaluate"

_HERE = "nemo_steerlm.pipeline.stages"
STAGES = [
    StageEntry(name=PREPARE, describe=f"{_HERE}.prepare:prepare"),
    StageEntry(name="train-value", describe=f"{_HERE}.train:train_value", trains="value"),
    StageEntry(name="annotate", describe=f"{_HERE}.annotate:annotate"),
    StageEntry(name="train-steer", describe=f"{_HERE}.train:train_steer", trains="steer"),
    StageEntry(name="bootstrap-N-sample", describe=f"{_HERE}.sample:sample"),
    StageEntry(name="bootstrap-N-train", describe=f"{_HERE}.train:bootstrap_train", trains="steer"),
    StageEntry(name=EVALUATE, describe=f"{_HERE}.evaluate:evaluate"),
]
"""``serve``, which follows them, is no work that ends."""


def trainings(kind: ModelKind) -> tuple[str, ...]:
    """Every name that a training of such a model may have, the last round first."""
    names: list[str] = []
    for entry in reversed(STAGES):
        if entry.trains == kind:
            names += [entry.named(number) for number in (range(MAX_ROUNDS, 0, -1) if entry.each_round else (None,))]
    return tuple(names)


def pattern() -> str:
    """Regular expression of all names, as the cluster's schema checks ``restart.fromStage``."""
    return f"^({'|'.join(entry.name.replace(_ROUND, '-[0-9]+-') for entry in STAGES)})$"


def known() -> str:
    """All names, for ``--help``."""
    return ", ".join(entry.name for entry in STAGES)
