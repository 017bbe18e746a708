"""Step 7 of the tutorial: label conversations through servers. Same flags as NeMo's scripts/nlp_language_modeling/sft/attribute_annotate.py.

All turns are labelled, as upstream does; ``--turns unmasked`` labels those of the roles that the value model learned on.
"""

from pathlib import Path

import typer

from nemo_steerlm.annotation.annotate import Options
from nemo_steerlm.cli.annotate import TurnsChoice, finish, label_file
from nemo_steerlm.cli.main import run_and_exit
from nemo_steerlm.core.errors import UsageError

WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def attribute_annotate(
    batch_size: int = typer.Option(1, "--batch_size", "--batch-size", help="Conversations a request."),
    host: str = typer.Option("localhost", "--host"),
    input_file_name: Path = typer.Option("input.jsonl", "--input_file_name", "--input-file-name"),
    output_file_name: Path = typer.Option("output.jsonl", "--output_file_name", "--output-file-name"),
    port_num: int = typer.Option(1424, "--port_num", "--port-num"),
    process_lang: str = typer.Option("True", "--process_lang", "--process-lang", help="True or False: label the language too."),
    server: list[str] = typer.Option([], help="http://HOST:PORT, instead of host and port; several times for several servers."),
    turns: TurnsChoice = typer.Option(TurnsChoice.ALL),
) -> None:
    """Label conversations through inference servers."""
    if process_lang.lower() not in WORDS:
        raise UsageError(f"--process_lang {process_lang}: write True or False")
    options = Options(batch_size=batch_size, languages=WORDS[process_lang.lower()], turns=turns.value)
    finish(label_file(input_file_name, output_file_name, server or [f"http://{host}:{port_num}"], options))


if __name__ == "__main__":
    run_and_exit(lambda: typer.run(attribute_annotate), program="attribute_annotate.py")
