"""Step 7 of the tutorial: label conversations through servers. Same flags as NeMo's sft/attribute_annotate.py.

All turns are labelled, as upstream does; ``--turns unmasked`` labels those of the roles that the value model learned on.
"""

import typer

from nemo_steerlm.cli.annotate import attribute_annotate
from nemo_steerlm.core.exits import run_and_exit

if __name__ == "__main__":
    run_and_exit(lambda: typer.run(attribute_annotate), program="attribute_annotate.py")
