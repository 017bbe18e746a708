"""``steerlm export``."""

from __future__ import annotations

from pathlib import Path

import typer

from nemo_steerlm.core.errors import UsageError, nearest, shown


def export(
    model: Path = typer.Argument(help="An exported model folder, or the work directory of a finished pipeline."),
    gguf: str = typer.Option("", help="Write one GGUF file for llama.cpp, its weights as F32, F16 or Q8_0."),
    out: Path | None = typer.Option(None, help="The GGUF file; by default MODEL-F16.gguf beside the model."),
    ollama: bool = typer.Option(False, help="Of --gguf: write Modelfiles for Ollama beside it, one for each label."),
    push: str = typer.Option("", help="Send the folder to this repository of the Hugging Face hub, OWNER/NAME; HF_TOKEN has the token."),
    private: bool = typer.Option(False, help="Where --push makes the repository: only its owner sees it."),
    dry_run: bool = typer.Option(False, help="Of --push: only say what would go."),
) -> None:
    """Write an exported model for another engine, or send it to the hub."""
    from nemo_steerlm.pipeline.artifacts import served_model

    if bool(gguf) == bool(push):
        raise UsageError("write one of --gguf and --push")
    if ollama and not gguf:
        raise UsageError("--ollama goes with --gguf: a Modelfile names the GGUF file")
    if gguf:
        _write_gguf(served_model(model), gguf, out, ollama=ollama)
    else:
        _push(served_model(model), push, private=private, dry_run=dry_run)


def _write_gguf(folder: Path, gguf: str, out: Path | None, *, ollama: bool) -> None:
    from nemo_steerlm.formats.gguf_export import KINDS, write_gguf

    kind = next((kind for kind in KINDS if kind == gguf.upper()), None)
    if kind is None:
        raise UsageError(f"--gguf {shown(gguf)}: {nearest(gguf.upper(), KINDS)}write one of {', '.join(KINDS)}")
    target = out or folder.with_name(f"{folder.resolve().name}-{kind}.gguf")
    start = write_gguf(folder, target, kind)
    print(f"wrote {target}")
    if ollama:
        from nemo_steerlm.formats.ollama import write_modelfiles

        for path in write_modelfiles(folder, target, start=start):
            print(f"wrote {path}; ollama create NAME -f {path}")


def _push(folder: Path, repository: str, *, private: bool, dry_run: bool) -> None:
    from nemo_steerlm.core.model_info import ModelInfo
    from nemo_steerlm.data.hub import check_repository, files_to_push, push

    check_repository(repository)
    ModelInfo.load(folder)
    files = files_to_push(folder)
    for name, size in files:
        print(f"{size:>15,}  {name}")
    total = f"{len(files)} files, {sum(size for _, size in files):,} bytes"
    if dry_run:
        print(f"would send {total} to {repository}")
    else:
        print(f"sent {total} to {push(folder, repository, private=private)}")
