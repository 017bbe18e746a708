"""Trains the same thing under every layout of two processes, one after another; torchrun starts it for test_train.py."""

from __future__ import annotations

import json
import sys

from megatron.core import parallel_state

from nemo_steerlm.training.train import main

if __name__ == "__main__":
    common, out, layouts = sys.argv[1:]
    for name, extra in json.loads(layouts).items():
        parallel_state.destroy_model_parallel()
        places = [f"exp_manager.explicit_log_dir={out}/{name}", f"steerlm.metrics_file={out}/{name}.json"]
        main([*json.loads(common), "trainer.devices=2", *places, *extra])
