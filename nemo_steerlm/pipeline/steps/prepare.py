"""The first stage: rated data to cleaned records, and the base model's tokenizer with the control tokens in it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

from nemo_steerlm.core.conversation import Mode
from nemo_steerlm.core.errors import Where, shown
from nemo_steerlm.data.cleaning import CleaningRules, TokenizerChoice, clean
from nemo_steerlm.data.record_files import RecordFiles, Use
from nemo_steerlm.data.rejects import Rejects
from nemo_steerlm.data.sources.source import SourceContext, weighted
from nemo_steerlm.data.splits import SPLITS
from nemo_steerlm.formats.checkpoint import check_checkpoint
from nemo_steerlm.formats.nemo_archive import is_nemo
from nemo_steerlm.formats.tokenizer_files import write_tokenizer_files
from nemo_steerlm.pipeline.run_context import Run

PARTS: tuple[tuple[str, Use, Mode], ...] = (("value", "teach", "TEXT_TO_VALUE"), ("annotate", "label", "VALUE_TO_TEXT"))
"""The record files of a split: prefix of their names, what they are for, and what their records teach."""


def prepare(run: Run) -> dict[str, Any]:
    """Write the tokenizer, ``value_{train,val}.jsonl`` (labelled, for the value model) and ``annotate_{train,val}.jsonl`` (to be labelled).

    Records to be labelled already have the type they will train with, VALUE_TO_TEXT, so that nothing downstream has to change it.
    """
    spec = run.pipeline.spec
    tokenizer = run.folder / "tokenizer"
    tokens = spec.model.chat_tokens.tokens()
    base = run.resolve(spec.model.base, "model")
    if not is_nemo(str(base)):  # the trainings that come after would refuse it, hours later
        check_checkpoint(base, values=True)
    write_tokenizer_files(base, tokenizer, tokens.markers)
    schema = spec.attributes.schema_()
    hide: Literal["none", "masked"] = "masked" if spec.annotate.turns == "unmasked" else "none"
    rules = CleaningRules(spec.model.max_sequence_length, tokens, spec.model.layout, schema, hide_human=hide)
    metrics: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=run.folder, prefix=".raw.") as raw:
        files, notes = read_source(run, Path(raw))
        outputs = [(f"{part}_{split}", use, split, mode) for part, use, mode in PARTS for split in SPLITS]
        for done, (name, use, split, mode) in enumerate(outputs):
            run.progress(done, len(outputs), phase=name)
            # A training cuts records that are too long itself, but a server has nothing to say about text that it cannot see.
            fitted = rules._replace(mode=mode, shorten=schema if use == "label" else None)
            output = run.folder / f"{name}.jsonl"
            cleaned = clean(files.paths(use, split), output, tokenizer_choice(tokenizer), fitted, on_error=spec.data.on_error)
            metrics[name] = {
                "records": cleaned.kept,
                "removed": cleaned.removed,
                "shortened": cleaned.shortened,
                "rejected": cleaned.rejected,
            }
        run.progress(len(outputs), len(outputs))
    return {**metrics, **notes}


def read_source(run: Run, folder: Path) -> tuple[RecordFiles, dict[str, Any]]:
    """Read the manifest's sources once, into ``folder``. Returns their record files, and what there is to say about them."""
    spec = run.pipeline.spec
    schema = spec.attributes.schema_()
    rejected = run.folder / ("sources" if spec.data.several else spec.data.given[0])
    with Rejects(rejected, spec.data.on_error) as rejects, RecordFiles(folder) as files:
        reading = SourceContext(
            resolve=run.resolve,
            schema=schema,
            rejects=rejects,
            folder=folder,
            tokens=spec.model.chat_tokens.tokens(),
            system=spec.data.system,
        )
        for entry in spec.data.entries:
            files.write(weighted(entry.source.read(reading), entry.weight), entry.name)
        rejects.require_kept(files.systems.total(), Where(field="data"))
        files.require_rated()
    absent = files.absent(schema)
    if absent:
        run.warn(f"the data has no ratings of {', '.join(absent)}: labels leave them out")
    if rejects.count:
        [(reason, times)] = rejects.counts.most_common(1)
        run.warn(f"records that cannot be used: {rejects.count}, of {times} the reason is: {reason}; see {rejects.path}")
    system, systems = files.systems.most_common(1)[0][0], len(files.systems)
    if systems > 1:
        run.warn(f"the data has {systems} system prompts; what a server uses by default is the commonest: {shown(system)}")
    said = {"rejected": dict(rejects.counts), "leftOut": dict(reading.left_out)}
    sources = {name: {"conversations": dict(counts.conversations), "rated": dict(counts.rated)} for name, counts in files.sources.items()}
    return files, {**said, "rated": dict(files.rated), "unrated": absent, "systemPrompts": systems, "sources": sources}


def tokenizer_choice(folder: Path) -> TokenizerChoice:
    """The prepared tokenizer as data_clean's flags name it."""
    model = folder / "tokenizer.model"
    if model.is_file():
        return TokenizerChoice(library="sentencepiece", model_file=str(model))
    return TokenizerChoice(library="huggingface", model_name=str(folder))
