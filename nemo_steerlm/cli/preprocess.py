"""``steerlm preprocess`` and examples/preprocessing.py: OASST trees to conversation records."""

from __future__ import annotations

import enum
import sys

import typer

from nemo_steerlm.core.attributes import PRESETS
from nemo_steerlm.core.conversation import USER
from nemo_steerlm.core.objectives import OBJECTIVES
from nemo_steerlm.core.template import ChatTokens

_TOKENS = ChatTokens()
TYPES = " or ".join(f"{name} ({each.summary})" for name, each in OBJECTIVES.items())


class OnErrorChoice(str, enum.Enum):
    """What a bad record does."""

    FAIL = "fail"
    SKIP = "skip"


def preprocess(
    input_file: str = typer.Option(
        "2023-04-12_oasst_all.trees.jsonl",
        "--input_file",
        "--input-file",
        help="OASST trees, .jsonl or .jsonl.gz: a path, or hf:OWNER/NAME/FILE on the Hugging Face hub.",
    ),
    output_file_prefix: str = typer.Option(
        "oasst_output", "--output_file_prefix", "--output-file-prefix", help="PREFIX: writes PREFIX_train.jsonl and PREFIX_val.jsonl."
    ),
    mask_role: str = typer.Option(USER, "--mask_role", "--mask-role", help="The role that is not learned: User or Assistant."),
    kind: str = typer.Option("TEXT_TO_VALUE", "--type", help=f"{TYPES}."),
    split_ratio: float = typer.Option(0.95, "--split_ratio", "--split-ratio", help="Share of trees that train; the rest validates."),
    seed: int = typer.Option(10, "--seed", help="Seed of the shuffle before the split."),
    limit: int = typer.Option(0, "--limit", help="Read only the first so many trees; 0 reads all."),
    jobs: int = typer.Option(1, "--jobs", help="Processes."),
    on_error: OnErrorChoice = typer.Option(
        OnErrorChoice.FAIL, "--on-error", "--on_error", help="fail: stop at a bad tree; skip: set it aside in PREFIX.rejected.jsonl."
    ),
    system_turn_start: str = typer.Option(_TOKENS.system_turn_start, "--system_turn_start", help="Control string nobody may have typed."),
    turn_start: str = typer.Option(_TOKENS.turn_start, "--turn_start", help="Control string nobody may have typed."),
    label_start: str = typer.Option(_TOKENS.label_start, "--label_start", help="Control string nobody may have typed."),
) -> None:
    """Turn OASST message trees into training and validation records, as the tutorial's preprocessing.py does."""
    from nemo_steerlm.data import preprocessing
    from nemo_steerlm.data.packages import local_path

    done = preprocessing.preprocess(
        local_path(input_file),
        output_file_prefix,
        preprocessing.PreprocessingRules(
            mask_role=mask_role,
            mode=kind,
            split_ratio=split_ratio,
            seed=seed,
            limit=limit or None,
            tokens=ChatTokens.from_shell(system_turn_start=system_turn_start, turn_start=turn_start, label_start=label_start),
        ),
        jobs=jobs,
        on_error=on_error.value,
    )
    print(f"lang values: {done.languages}")
    prefix = output_file_prefix
    print(f"{done.trees} trees: {done.train} records in {prefix}_train.jsonl, {done.validation} in {prefix}_val.jsonl")
    for reason, count in done.left_out.items():
        print(f"{count} branches end early: {reason}")
    if not done.rated:
        names = ", ".join(PRESETS["oasst"].names)
        print(
            f"no message has a rating of {names}: these records can be labelled, but a value model learns nothing from them",
            file=sys.stderr,
        )
    report_rejected(done.rejected, f"{output_file_prefix}.rejected.jsonl")


def report_rejected(reasons: dict[str, int], path: str) -> None:
    """Say on stderr how many records were set aside and why; nothing where there are none."""
    if reasons:
        print(f"{sum(reasons.values())} rejected, see {path}:", file=sys.stderr)
        for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
            print(f"  {count}  {reason}", file=sys.stderr)
