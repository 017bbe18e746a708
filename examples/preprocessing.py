"""Step 4 of the tutorial: OASST trees to conversation records. Same flags as NeMo's scripts/nlp_language_modeling/sft/preprocessing.py."""

import typer

from nemo_steerlm.cli.preprocess import preprocess
from nemo_steerlm.core.exits import run_and_exit

if __name__ == "__main__":
    run_and_exit(lambda: typer.run(preprocess), program="preprocessing.py")
