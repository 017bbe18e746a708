"""Tutorial steps 7 and 10: serve a model with NeMo's flags.

Example: python examples/megatron_gpt_eval.py gpt_model_file=value.nemo server=True port=1424 tensor_model_parallel_size=2 trainer.devices=2
"""

from __future__ import annotations

import sys

from nemo_steerlm.cli.nemo_flags import serve_with_nemo_flags
from nemo_steerlm.core.exits import run_and_exit

if __name__ == "__main__":
    run_and_exit(lambda: serve_with_nemo_flags(sys.argv[1:]), "megatron_gpt_eval.py")
