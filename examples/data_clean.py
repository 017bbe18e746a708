"""Steps 5 and 8 of the tutorial: drop records that teach nothing within the length. Same flags as NeMo's sft/data_clean.py."""

import typer

from nemo_steerlm.cli.clean import clean
from nemo_steerlm.core.exits import run_and_exit

if __name__ == "__main__":
    run_and_exit(lambda: typer.run(clean), program="data_clean.py")
