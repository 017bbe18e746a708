"""What ``--help`` says."""

from __future__ import annotations

import pytest
import typer

from nemo_steerlm.cli.main import COMMANDS, application


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_says_what_it_is(name):
    command = typer.main.get_command(application([name])).commands[name]
    with typer.Context(command, info_name=name) as context:
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                _, told = parameter.get_help_record(context)
                assert not told.startswith("["), f"{parameter.name}: only {told}"
