"""Train a value model (step 6 of the tutorial) or a SteerLM model (step 9): ``train_gpt_sft.py key=value``.

Takes the keys of NeMo-Aligner's gpt_sft.yaml; see nemo_steerlm/training/conf/gpt_sft.yaml. The same as
``python -m nemo_steerlm.training.train``.
"""

from nemo_steerlm.core.exits import run_and_exit
from nemo_steerlm.training.train import main

if __name__ == "__main__":
    run_and_exit(main, "train_gpt_sft")
