"""``steerlm export``."""

from __future__ import annotations

from pathlib import Path

import typer

from nemo_steerlm.core.errors import ConfigError, UsageError, nearest, shown


def export(
    model: Path = typer.Argument(help="An exported model folder, or the work directory of a finished pipeline."),
    gguf: str = typer.Option("", help="Write one GGUF file for llama.cpp, its weights as F32, F16 or Q8_0."),
    out: Path | None = typer.Option(None, help="The file to write; by default MODEL-F16.gguf beside the model."),
) -> None:
    """Write an exported model for another engine."""
    from nemo_steerlm.formats.gguf_export import KINDS, write_gguf
    from nemo_steerlm.pipeline.artifacts import served_model

    kind = next((kind for kind in KINDS if kind == gguf.upper()), None)
    if kind is None:
        raise UsageError(f"--gguf {shown(gguf)}: {nearest(gguf.upper(), KINDS)}write one of {', '.join(KINDS)}")
    folder = served_model(model)
    target = out or folder.with_name(f"{folder.resolve().name}-{kind}.gguf")
    try:
        write_gguf(folder, target, kind)
    except ImportError as error:
        raise ConfigError(f"--gguf needs the gguf package: pip install 'nemo_steerlm[nemo]' ({error})") from error
    print(f"wrote {target}")
