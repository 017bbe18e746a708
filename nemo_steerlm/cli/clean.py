"""``steerlm clean`` and examples/data_clean.py: drop records that teach nothing within the length."""

from __future__ import annotations

import typer

from nemo_steerlm.cli.preprocess import OnErrorChoice, report_rejected
from nemo_steerlm.core.template import ChatTokens

_TOKENS = ChatTokens()


def clean(
    dataset_file: str = typer.Option(..., "--dataset_file", "--dataset-file", help="Records, .jsonl or .jsonl.gz."),
    output_file: str = typer.Option(..., "--output_file", "--output-file", help="Where those that are kept go."),
    library: str = typer.Option("huggingface", "--library", help="huggingface or sentencepiece."),
    model_name: str = typer.Option("EleutherAI/gpt-neox-20b", "--model_name", "--model-name", help="Hugging Face: folder or hub name."),
    model_file: str = typer.Option("", "--model_file", "--model-file", help="Sentencepiece model file."),
    seq_len: int = typer.Option(4096, "--seq_len", "--seq-len", help="Something must be learned within so many tokens."),
    system_turn_start: str = typer.Option(_TOKENS.system_turn_start, "--system_turn_start", help="Control string; \\x00 is an escape."),
    turn_start: str = typer.Option(_TOKENS.turn_start, "--turn_start", help="Control string."),
    label_start: str = typer.Option(_TOKENS.label_start, "--label_start", help="Control string."),
    end_of_turn: str = typer.Option(_TOKENS.end_of_turn, "--end_of_turn", help="What ends a turn."),
    end_of_name: str = typer.Option(_TOKENS.end_of_name, "--end_of_name", help="What ends a name and a label."),
    attributes: str = typer.Option("", "--attributes", help="Check labels against this preset, such as oasst."),
    shorten: bool = typer.Option(
        False, "--shorten", help="Cut conversations after the last turn that a server can read and label (--attributes) within --seq_len."
    ),
    jobs: int = typer.Option(1, "--jobs", help="Processes."),
    details: str = typer.Option("", "--details", help="JSONL file for line and reason of each removed record."),
    on_error: OnErrorChoice = typer.Option(
        OnErrorChoice.FAIL, "--on-error", "--on_error", help="fail: stop at a broken record; skip: set it aside in OUTPUT.rejected.jsonl."
    ),
) -> None:
    """Drop records that teach nothing within the length, as the tutorial's data_clean.py does, and say why."""
    from nemo_steerlm.core.attributes import preset
    from nemo_steerlm.data import cleaning

    tokens = ChatTokens.from_shell(
        system_turn_start=system_turn_start,
        turn_start=turn_start,
        label_start=label_start,
        end_of_turn=end_of_turn,
        end_of_name=end_of_name,
    )
    schema = preset(attributes) if attributes else None
    done = cleaning.clean(
        dataset_file,
        output_file,
        cleaning.TokenizerChoice(library, model_name, model_file or None),
        cleaning.CleaningRules(seq_len=seq_len, tokens=tokens, schema=schema, shorten=(schema or preset("oasst")) if shorten else None),
        jobs=jobs,
        on_error=on_error.value,
        details=details or None,
    )
    shortened = f", {done.shortened} shortened" if shorten else ""
    print(f"{done.kept} kept in {output_file}, {sum(done.removed.values())} removed{shortened}")
    for reason, count in sorted(done.removed.items(), key=lambda item: -item[1]):
        print(f"  {count}  {reason}")
    report_rejected(done.rejected, f"{output_file}.rejected.jsonl")
