"""``steerlm convert``."""

from __future__ import annotations

from pathlib import Path

import typer

from nemo_steerlm.core.errors import UsageError, shown
from nemo_steerlm.core.template import ChatTokens

PRECISIONS = ("32", "16", "16-mixed", "bf16", "bf16-mixed")


def convert(
    source: str = typer.Argument(
        help="A Hugging Face model folder, OWNER/NAME[@REVISION] on the hub or a .gguf file (to .nemo), or a .nemo (to a folder)."
    ),
    out: Path = typer.Argument(help="The .nemo file or the folder to write."),
    precision: str = typer.Option("", help="What a .nemo's weights are stored as: 32, 16 or bf16; by default what the source has."),
    chat_tokens: bool = typer.Option(True, help="Give the three chat markers tokens of their own in the .nemo's vocabulary."),
    system_turn_start: str = typer.Option(ChatTokens().system_turn_start, help="Marker that opens the system prompt."),
    turn_start: str = typer.Option(ChatTokens().turn_start, help="Marker that opens a turn."),
    label_start: str = typer.Option(ChatTokens().label_start, help="Marker that opens a label."),
) -> None:
    """Convert Hugging Face checkpoints to .nemo and back."""
    tokens = ChatTokens.from_shell(system_turn_start=system_turn_start, turn_start=turn_start, label_start=label_start)
    from nemo_steerlm.formats.nemo_archive import is_nemo

    if is_nemo(source):
        if out.suffix == ".nemo":
            raise UsageError(f"{out}: the source is a .nemo already; name a folder to write")
        require_source(Path(source))
        from nemo_steerlm.megatron import compat

        with compat.importing_nemo():
            from nemo_steerlm.megatron.convert import convert_nemo_to_hf

        convert_nemo_to_hf(source, out)
        print(f"wrote {out}")
    else:
        to_nemo(source, out, precision or None, tokens if chat_tokens else None)


def to_nemo(source: str, out: Path, precision: str | None, tokens: ChatTokens | None) -> None:
    """Convert to ``.nemo`` and say so. Everything that can be wrong with the words of the command is checked before NeMo is imported.

    Raises:
        UsageError: If ``out`` has another suffix, or ``precision`` is unknown.
    """
    if out.suffix != ".nemo":
        raise UsageError(f"{out}: the name of the output must end in .nemo")
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"--precision {shown(precision)}: write one of {', '.join(PRECISIONS)}")
    from nemo_steerlm.data.hub import model_folder
    from nemo_steerlm.data.packages import REMOTE, local_path
    from nemo_steerlm.formats.checkpoint import check_checkpoint

    folder = local_path(source, kind="model") if source.startswith(REMOTE) else model_folder(source)
    check_checkpoint(folder)
    from nemo_steerlm.megatron import compat

    with compat.importing_nemo():
        from nemo_steerlm.megatron.convert import convert_hf_to_nemo

    convert_hf_to_nemo(folder, out, precision=precision, tokens=tokens)
    print(f"wrote {out}")


def require_source(source: Path) -> None:
    """Raise UsageError where there is nothing at ``source``."""
    if not source.exists():
        raise UsageError(f"{source}: no such file or folder; download the model first")
