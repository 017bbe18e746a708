"""Step 10 of the tutorial: ask a SteerLM model under chosen attributes. From Python: ``nemo_steerlm.client.chat.get_answer``."""

import typer

from nemo_steerlm.cli.answer import answer
from nemo_steerlm.core.exits import run_and_exit

if __name__ == "__main__":
    run_and_exit(lambda: typer.run(answer), program="get_answer.py")
