"""Supervised fine-tuning of value models and SteerLM models: ``python -m nemo_steerlm.training.train key=value …``.

Everything that can be wrong with settings and records is found before NeMo is imported. The loop is this module's own, as
NeMo-Aligner's is: Lightning only starts the processes.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from nemo_steerlm.core.exits import run_and_exit
from nemo_steerlm.megatron import compat
from nemo_steerlm.training import config
from nemo_steerlm.training.plan import Plan, plan_training
from nemo_steerlm.training.stop_signal import StopSignal


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the command line says. Exits 143 on SIGTERM after saving; errors of this package end it with their own codes."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("nemo_steerlm").setLevel(logging.INFO)
    for noisy in ("megatron", "nemo_logger", "bitsandbytes"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="steerlm-tokenizer-") as scratch, StopSignal() as stop:
        run(plan_training(config.compose(sys.argv[1:] if arguments is None else arguments), Path(scratch)), stop)


def run(plan: Plan, stop: StopSignal) -> None:
    """Load the model, train it, write what was asked for."""
    with compat.importing_nemo():
        from nemo_steerlm.training.loop import TrainingLoop

    TrainingLoop(plan, stop).run()


if __name__ == "__main__":
    run_and_exit(main, "train")
