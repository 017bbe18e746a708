"""``steerlm answer`` and examples/get_answer.py: one question under chosen attributes."""

from __future__ import annotations

import typer


def answer(
    question: str = typer.Argument(help="What to ask."),
    server: str = typer.Option("http://localhost:1427", help="http://HOST:PORT of a server with a SteerLM model."),
    attribute: list[str] = typer.Option([], "--set", help="Attribute to write under, as quality=4 or lang=en. Repeatable."),
    max_tokens: int = typer.Option(512, "--max-tokens", "--max_tokens", help="Tokens to answer with at most."),
    system: str | None = typer.Option(None, help="System prompt; by default the model's own."),
    patience: float = typer.Option(30.0, help="Seconds to wait for the server."),
) -> None:
    """Ask one question under chosen attributes and print the answer."""
    from nemo_steerlm.client.chat import get_answer
    from nemo_steerlm.core.labels import Label

    print(get_answer(question, Label.from_options(attribute).to_mapping(), server, max_tokens=max_tokens, system=system, patience=patience))
