"""``steerlm annotate`` and examples/attribute_annotate.py: label conversations through inference servers."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from nemo_steerlm.cli.preprocess import OnErrorChoice

if TYPE_CHECKING:
    from nemo_steerlm.annotation.annotate import Options
    from nemo_steerlm.annotation.results import Summary
    from nemo_steerlm.client.labelling import TurnSelection


class TurnsChoice(str, enum.Enum):
    """Which turns are labelled."""

    TAUGHT = "taught"
    UNMASKED = "unmasked"
    ALL = "all"


_TURNS = "Turns to label: those whose speaker had labels when the model was trained, those that are not masked, or all."


def _turns(choice: TurnsChoice) -> TurnSelection | None:
    return None if choice is TurnsChoice.TAUGHT else choice.value


class ProgressChoice(str, enum.Enum):
    """How progress is shown."""

    AUTO = "auto"
    JSON = "json"
    NONE = "none"


def annotate(
    input_file: Path = typer.Argument(help="Conversations, .jsonl or .jsonl.gz."),
    output_file: Path = typer.Argument(help="The same with predicted labels; rejects are in OUTPUT_FILE.rejected.jsonl."),
    server: list[str] = typer.Option([], help="http://HOST:PORT of a server; give it several times for several."),
    turns: TurnsChoice = typer.Option(TurnsChoice.TAUGHT, help=_TURNS),
    lang: bool = typer.Option(True, help="Label the language too, if the model has languages."),
    batch_size: int = typer.Option(1, help="Conversations per request."),
    max_in_flight: int = typer.Option(32, help="Requests at once to one server, at most."),
    shard: str | None = typer.Option(None, help="INDEX/COUNT, INDEX from 0: label every COUNT-th record only, into a part of OUTPUT_FILE."),
    merge: int = typer.Option(0, help="Put the parts of so many shards together; no server is needed."),
    confidence: bool = typer.Option(False, "--confidence", help="Write each value's probability beside the label."),
    min_confidence: float = typer.Option(0.0, help="Set records aside that have a value less probable than this."),
    summary: Path | None = typer.Option(None, help="Write counts and agreement with human labels as JSON into this file."),
    confusion: Path | None = typer.Option(None, help="Draw predicted against human values into this picture (.png, .svg)."),
    on_error: OnErrorChoice = typer.Option(OnErrorChoice.FAIL, help="fail: stop at a broken record; skip: set it aside."),
    restart: bool = typer.Option(False, "--restart", help="Discard the labels of an interrupted run."),
    attributes: str = typer.Option("oasst", help="Attribute preset of servers that announce none."),
    label_source: str = typer.Option("unknown", help="Name of the model of servers that announce none."),
    attempts: int = typer.Option(8, help="Tries before a record is rejected; waiting for servers that are down is not one."),
    timeout: float = typer.Option(120.0, help="Seconds one request may take."),
    patience: float = typer.Option(600.0, help="Seconds without an answer from any server before the run ends with exit code 69."),
    progress: ProgressChoice = typer.Option(ProgressChoice.AUTO, help="auto: a bar on a terminal; json: one line per second; none."),
) -> None:
    """Label conversations through inference servers: every record once, in input order, however often it is interrupted.

    Exit code 0: every record is labelled. 1: some are in the rejects; run again to try them again. 130, 143: stopped by Ctrl-C or
    SIGTERM; the same command goes on. A server's key is read from STEERLM_API_KEY.
    """
    from nemo_steerlm.annotation.annotate import Options
    from nemo_steerlm.client.retry import RetryPolicy
    from nemo_steerlm.data.shard import Shard

    if merge:
        from nemo_steerlm.annotation.shards import merge as merge_shards

        finish(merge_shards(input_file, output_file, merge), summary, confusion, attributes)
        return
    options = Options(
        turns=_turns(turns),
        languages=lang,
        batch_size=batch_size,
        max_in_flight=max_in_flight,
        shard=Shard.parse(shard) if shard else Shard(),
        on_error=on_error.value,
        confidence=confidence,
        min_confidence=min_confidence,
        restart=restart,
        attributes=attributes,
        label_source=label_source,
        policy=RetryPolicy(attempts=attempts, timeout=timeout, patience=patience),
    )
    finish(label_file(input_file, output_file, server, options, progress), summary, confusion)


_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def attribute_annotate(
    batch_size: int = typer.Option(1, "--batch_size", "--batch-size", help="Conversations per request."),
    host: str = typer.Option("localhost", "--host"),
    input_file_name: Path = typer.Option(Path("input.jsonl"), "--input_file_name", "--input-file-name"),
    output_file_name: Path = typer.Option(Path("output.jsonl"), "--output_file_name", "--output-file-name"),
    port_num: int = typer.Option(1424, "--port_num", "--port-num"),
    process_lang: str = typer.Option("True", "--process_lang", "--process-lang", help="True or False: label the language too."),
    server: list[str] = typer.Option([], help="http://HOST:PORT, instead of host and port; several times for several servers."),
    turns: TurnsChoice = typer.Option(TurnsChoice.TAUGHT, help=f"{_TURNS} Models that do not say it get all labelled, as upstream."),
) -> None:
    """Label conversations through inference servers, with the flags and defaults of upstream's attribute_annotate.py.

    Stopped at any moment it goes on when it is started again. Exit code 1: some records are in OUTPUT_FILE_NAME.rejected.jsonl.
    """
    from nemo_steerlm.annotation.annotate import Options
    from nemo_steerlm.core.errors import UsageError

    if process_lang.lower() not in _WORDS:
        raise UsageError(f"--process_lang {process_lang}: write True or False")
    options = Options(batch_size=batch_size, languages=_WORDS[process_lang.lower()], turns=_turns(turns), turns_unknown="all")
    finish(label_file(input_file_name, output_file_name, server or [f"http://{host}:{port_num}"], options))


def label_file(
    input_file: Path, output_file: Path, servers: list[str], options: Options, progress: ProgressChoice = ProgressChoice.AUTO
) -> Summary:
    """Label with progress shown. SIGTERM ends it with exit code 143 and Ctrl-C with 130; the journal stays whole."""
    import logging

    from nemo_steerlm.annotation.annotate import annotate as label
    from nemo_steerlm.annotation.progress import shown
    from nemo_steerlm.core.processes import exit_on_sigterm

    exit_on_sigterm()
    # stamina warns of each retry, which would drown the progress; the rejects have the reasons that matter.
    logging.getLogger("stamina").setLevel(logging.ERROR)
    try:
        with shown(progress.value) as show:
            return label(input_file, output_file, servers, options, progress=show)
    except (KeyboardInterrupt, SystemExit) as stop:
        print(f"stopped; the same command goes on from {options.shard.path(output_file)}.journal", file=sys.stderr)
        raise SystemExit(130 if isinstance(stop, KeyboardInterrupt) else stop.code) from None


def finish(summary: Summary, summary_file: Path | None = None, confusion: Path | None = None, attributes: str = "oasst") -> None:
    """Print the result, write the requested files, and exit with 1 if a record is missing from the output.

    ``attributes`` names the preset of labels whose schema is not known.
    """
    from nemo_steerlm.annotation.results import summary_json
    from nemo_steerlm.core.attributes import preset
    from nemo_steerlm.evaluation.agreement import agreement_of, plot, write_figures

    agreement = agreement_of(summary.output, summary.schema or preset(attributes)) if summary.labelled else {}
    if summary_file:
        write_figures(summary_file, {**summary_json(summary), "agreement": agreement})
    if confusion:
        plot(agreement, confusion)
    for name, figures in agreement.items():
        mae, rho = figures.get("mae"), figures.get("spearman")
        rest = "" if mae is None else f"  MAE {mae:.3f}  Spearman {'n/a' if rho is None else format(rho, '.3f')}"
        print(f"  {name:<18} accuracy {figures['accuracy']:.3f}{rest}  ({figures['turns']} turns)")
    unsure = f", {summary.unsure} below the minimum confidence set aside" if summary.unsure else ""
    where = f"; rejects are in {summary.rejects}" if summary.rejects else ""
    print(f"{summary.labelled} of {summary.total} records labelled in {summary.output}{unsure}{where}")
    if not summary.complete:
        for reason, count in sorted(summary.reasons.items(), key=lambda item: -item[1])[:5]:
            print(f"  {count}  {reason}", file=sys.stderr)
        print(f"INCOMPLETE: {summary.failed} of {summary.total} records are not labelled; run again to try them again", file=sys.stderr)
        raise SystemExit(1)
