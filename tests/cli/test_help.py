"""What ``--help`` says."""

from __future__ import annotations

import shlex

import click
import pytest
import typer
from typer.testing import CliRunner

from nemo_steerlm.cli.examples import EXAMPLES
from nemo_steerlm.cli.main import COMMANDS, application


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_says_what_it_is(name):
    command = typer.main.get_command(application([name])).commands[name]
    with typer.Context(command, info_name=name) as context:
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                _, told = parameter.get_help_record(context)
                assert not told.startswith("["), f"{parameter.name}: only {told}"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_examples_that_the_command_takes(name):
    app = application([name])
    said = CliRunner().invoke(app, [name, "--help"], terminal_width=80).output
    assert said.rstrip().endswith("\n".join(["  Examples:", *(f"    {line}" for line in EXAMPLES[name])]))
    command = typer.main.get_command(app).commands[name]
    for line in EXAMPLES[name]:
        program, called, *words = shlex.split(line)
        assert (program, called) == ("steerlm", name)
        with click.Context(command, info_name=name) as context:
            command.make_parser(context).parse_args(words)
