"""What each kind of stage does, in its own process: a function from the run to its metrics, or to None where another process ends it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nemo_steerlm.pipeline.run_context import Run
from nemo_steerlm.pipeline.stages import Kind
from nemo_steerlm.pipeline.steps.annotate import annotate
from nemo_steerlm.pipeline.steps.evaluate import evaluate
from nemo_steerlm.pipeline.steps.prepare import prepare
from nemo_steerlm.pipeline.steps.sample import sample
from nemo_steerlm.pipeline.steps.train import train

STEPS: Mapping[Kind, Callable[[Run], dict[str, Any] | None]] = {
    "prepare": prepare,
    "train": train,
    "annotate": annotate,
    "sample": sample,
    "evaluate": evaluate,
}
