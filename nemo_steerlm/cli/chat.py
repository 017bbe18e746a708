"""``steerlm chat``: talk to a model in the terminal, and change its attributes while doing so."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from nemo_steerlm.core.errors import SteerLMError, UsageError

if TYPE_CHECKING:
    from nemo_steerlm.client.chat import Chat


def chat(
    model: str = typer.Argument(help="http://HOST:PORT of a server, or a model folder or finished pipeline to start one for."),
    attribute: list[str] = typer.Option([], "--set", help="Attribute to write under, as quality=4. Repeatable."),
    max_tokens: int = typer.Option(512, help="Tokens of an answer at most."),
    temperature: float = typer.Option(0.0, min=0.0, help="0: always the most probable token."),
    system: str | None = typer.Option(None, help="System prompt; by default the model's own."),
    best_of: int = typer.Option(1, min=1, max=16, help="Answers to write, of which the value model chooses."),
    strength: float = typer.Option(1.0, min=0.0, max=10.0, help="How strongly to follow the attributes; 1: as trained."),
    reader: str = typer.Option(
        "",
        help="Value model for a server started here: folder or http://HOST:PORT. With --best-of by default the pipeline's.",
    ),
    startup_timeout: float = typer.Option(300.0, help="Seconds a server that is started here may take to load."),
) -> None:
    """Talk to a model under chosen attributes. A server that is started for it is stopped at the end."""
    from nemo_steerlm.client.chat import Chat
    from nemo_steerlm.core.labels import Label
    from nemo_steerlm.core.processes import exit_on_sigterm

    exit_on_sigterm()
    with contextlib.ExitStack() as stack:
        url = (
            model
            if model.startswith(("http://", "https://"))
            else stack.enter_context(_started(Path(model), startup_timeout, reader, choose=best_of > 1))
        )
        asked = Label.from_options(attribute).to_mapping()
        how = {"max_tokens": max_tokens, "temperature": temperature, "system": system, "best_of": best_of, "strength": strength}
        talk = stack.enter_context(Chat(url, asked, **how))  # type: ignore[arg-type]
        print(_help(talk), file=sys.stderr)
        for text in _lines():
            if text.startswith("/"):
                if not _command(talk, text):
                    break
            elif text:
                _reply(talk, text)


@contextlib.contextmanager
def _started(model: Path, timeout: float, reader: str, *, choose: bool) -> Iterator[str]:
    """The address of a server of ``model``, with a value model where one is named, or to ``choose`` among answers."""
    from nemo_steerlm.client.launch import LaunchedServer, serve_command
    from nemo_steerlm.pipeline.artifacts import WorkDirectory

    if not model.exists():
        raise UsageError(f"{model}: no such folder; give http://HOST:PORT for a running server")
    own = WorkDirectory(model).model("value") if choose and not reader else None
    options = ("--reader", reader or str(own)) if reader or own else ()
    print(f"Loading {model} ...", file=sys.stderr)
    with (
        tempfile.TemporaryDirectory(prefix="steerlm-chat-") as folder,
        LaunchedServer(serve_command(model, *options), name=f"the server for {model}", log=Path(folder) / "server.log") as server,
    ):
        yield server.await_url(timeout)


def _lines() -> Iterator[str]:
    prompt = "> " if sys.stdin.isatty() else ""
    if prompt:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - editing and history for input()
    with contextlib.suppress(EOFError):
        while True:
            yield input(prompt).strip()


def _reply(talk: Chat, text: str) -> None:
    try:
        for piece in talk.say(text):
            print(piece, end="", flush=True)
    except SteerLMError as error:
        # A refused or broken answer ends the answer, not the chat.
        print(f"steerlm chat: {error}", file=sys.stderr, end="")
    except KeyboardInterrupt:
        print(" [stopped]", end="")
    print(flush=True)
    if line := _details_line(talk.details):
        print(line, file=sys.stderr)


def _details_line(details: dict[str, Any]) -> str:
    """How the answer reads, and whether its label was taught, in brackets; empty where the server said nothing of it."""
    parts = []
    if details.get("read"):
        parts.append("reads " + ", ".join(f"{name} {reading['expected']:.1f}" for name, reading in details["read"]["attributes"].items()))
    if details.get("not_read"):
        parts.append(f"not read: {details['not_read']}")
    if "candidates" in details:
        parts.append(f"answer {details['chosen'] + 1} of {len(details['candidates'])}")
    if "warning" in details:
        nearest = " ".join(f"{name}={value}" for name, value in details["nearest_taught"].items())
        parts.append(f"{details['warning']}; the nearest that was: {nearest}")
    return f"[{'; '.join(parts)}]" if parts else ""


def _help(talk: Chat) -> str:
    some = " ".join(f"{a.name}={a.high}" for a in talk.schema.attributes[:2])
    return f"/set {some}   /strength 2   /best 4   /show   /reset (forget what was said)   /quit"


def _command(talk: Chat, text: str) -> bool:
    """Do what a line that begins with ``/`` says. False: end the chat."""
    from nemo_steerlm.core.labels import Label

    name, *words = text.split()
    if name in ("/quit", "/exit"):
        return False
    if name == "/reset":
        talk.reset()
    elif name == "/set" and words:
        try:
            talk.set(Label.from_options(words).to_mapping())
        except SteerLMError as error:
            print(error, file=sys.stderr)
    elif name in ("/strength", "/best") and len(words) == 1:
        _tune(talk, name, words[0])
    elif name != "/show":
        print(_help(talk), file=sys.stderr)
        return True
    shown = talk.attributes.over(Label(values=talk.schema.defaults())).to_mapping()
    tuned = [f"strength {talk.strength:g}"] * (talk.strength != 1) + [f"best of {talk.best_of}"] * (talk.best_of > 1)
    print(f"[{'; '.join([f'{len(talk.messages)} messages', ', '.join(f'{k}={v}' for k, v in shown.items()), *tuned])}]", flush=True)
    return True


def _tune(talk: Chat, name: str, word: str) -> None:
    """``/strength`` and ``/best``. The server says what is out of range."""
    try:
        if name == "/strength":
            talk.strength = float(word)
        else:
            talk.best_of = int(word)
    except ValueError:
        print(f"{name} wants a number, as {name} 2", file=sys.stderr)
