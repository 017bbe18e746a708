"""``steerlm``: finds the command and imports its file."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import typer

from nemo_steerlm import __version__
from nemo_steerlm.cli.examples import epilog
from nemo_steerlm.core.exits import run_and_exit

COMMANDS = {
    "init": "Write a pipeline file for rated texts of your own.",
    "doctor": "Say what is installed, what this machine is, and what will be slow.",
    "run": "Run a pipeline on this machine.",
    "validate": "Check a pipeline file.",
    "status": "Show how far a pipeline's work directory is.",
    "plan": "Show the stages, hashes and Kubernetes objects of a pipeline file.",
    "schema": "Print the JSON schema of a pipeline file.",
    "stage": "Run one stage of a pipeline (what executors call).",
    "preprocess": "Turn rated data into conversation records.",
    "clean": "Drop records that teach nothing within the length.",
    "render": "Show the exact prompt of a record, learned spans coloured.",
    "annotate": "Label conversations through inference servers.",
    "serve": "Serve a model or a finished pipeline over HTTP.",
    "chat": "Talk to a served model under chosen attributes.",
    "answer": "Ask one question under chosen attributes.",
    "export": "Write an exported model for llama.cpp, or send it to the hub.",
    "convert": "Convert Hugging Face checkpoints to .nemo and back.",
}
"""Command name to its line in ``--help``. The command itself is the function of that name in the file of that name."""


def application(arguments: Sequence[str]) -> typer.Typer:
    """The command line, with only the file of the command that ``arguments`` call imported: the others are names in ``--help``."""
    # Plain help: drawing boxes imports rich, which costs half a second.
    app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.callback()(steerlm)
    called = next((a for a in arguments if not a.startswith("-")), None)
    for name, line in COMMANDS.items():
        function = getattr(importlib.import_module(f"nemo_steerlm.cli.{name}"), name) if name == called else _not_called
        app.command(name, short_help=line, epilog=epilog(name))(function)
    return app


def _not_called() -> None:
    """Stands in --help for a command whose file is not imported."""


def steerlm(
    version: bool = typer.Option(
        False, "--version", is_eager=True, callback=lambda on: _print_version() if on else None, help="Print the version and exit."
    ),
) -> None:
    """Train language models that can be steered by attributes, and run them.

    Begin with your own ratings: steerlm init FILE, then steerlm run NAME.yaml, then steerlm chat runs/NAME.
    """


def _print_version() -> None:
    print(__version__)
    raise typer.Exit


def main() -> None:
    """Entry point of the ``steerlm`` script."""
    run_and_exit(application(_completed() or sys.argv[1:]))


def _completed() -> list[str]:
    """The words of a command line that a shell asks to complete; typer hands them over in the environment, as the shell does."""
    if "_STEERLM_COMPLETE" not in os.environ:
        return []
    return (os.environ.get("_TYPER_COMPLETE_ARGS") or os.environ.get("COMP_WORDS") or "").split()[1:]


if __name__ == "__main__":
    main()
