"""The first stage: rated data to cleaned records, and the base model's tokenizer with the control tokens in it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nemo_steerlm.core.conversation import SYSTEM_PROMPT, Mode
from nemo_steerlm.data import helpsteer, preprocessing, rated_text
from nemo_steerlm.data.cleaning import Rules, TokenizerChoice, clean
from nemo_steerlm.data.records import Record, read_records, write_records
from nemo_steerlm.data.rejects import Rejects
from nemo_steerlm.formats.checkpoint import check_checkpoint
from nemo_steerlm.formats.nemo_archive import is_nemo
from nemo_steerlm.formats.tokenizer_files import write_tokenizer_files
from nemo_steerlm.pipeline.manifest import PipelineSpec
from nemo_steerlm.pipeline.run_context import Run
from nemo_steerlm.pipeline.sources import HelpSteerSource, OasstSource, RatedTextSource, RecordsSource, Source
from nemo_steerlm.pipeline.stages import SPLITS, Split

TEACH: Mode = "TEXT_TO_VALUE"
WRITE: Mode = "VALUE_TO_TEXT"


def prepare(run: Run) -> dict[str, Any]:
    """Write the tokenizer, ``value_{train,val}.jsonl`` (labelled, for the value model) and ``annotate_{train,val}.jsonl`` (to be labelled).

    Records to be labelled already have the type they will train with, VALUE_TO_TEXT, so that nothing downstream has to change it.
    """
    spec = run.pipeline.spec
    tokenizer = run.folder / "tokenizer"
    tokens = spec.model.chat_tokens.tokens()
    base = run.resolve(spec.model.base)
    if not is_nemo(str(base)):  # the trainings that come after would refuse it, hours later
        check_checkpoint(base, values=True)
    write_tokenizer_files(base, tokenizer, tokens.markers)
    schema = spec.attributes.schema_()
    rules = Rules(spec.model.max_sequence_length, tokens, spec.model.layout, schema)
    metrics: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=run.folder, prefix=".raw.") as raw:
        rejected = read_source(run, Path(raw))
        names = [f"{part}_{split}" for part in ("value", "annotate") for split in SPLITS]
        for done, name in enumerate(names):
            run.progress(done, len(names), phase=name)
            # A training cuts records that are too long itself, but a server has nothing to say about text that it cannot see.
            fitted = rules._replace(shorten=schema if name.startswith("annotate") else None)
            cleaned = clean(
                Path(raw) / f"{name}.jsonl", run.folder / f"{name}.jsonl", tokenizer_choice(tokenizer), fitted, on_error=spec.data.on_error
            )
            metrics[name] = {
                "records": cleaned.kept,
                "removed": cleaned.removed,
                "shortened": cleaned.shortened,
                "rejected": cleaned.rejected,
            }
        run.progress(len(names), len(names))
    return {**metrics, "rejected": rejected}


def tokenizer_choice(folder: Path) -> TokenizerChoice:
    """The prepared tokenizer as data_clean's flags name it."""
    model = folder / "tokenizer.model"
    if model.is_file():
        return TokenizerChoice(library="sentencepiece", model_file=str(model))
    return TokenizerChoice(library="huggingface", model_name=str(folder))


def read_source(run: Run, raw: Path) -> dict[str, int]:
    """Write the four record files of the manifest's source into ``raw``. Returns how many records were set aside, by reason."""
    source = run.pipeline.spec.data.source
    return READERS[type(source)](run, source, raw)


def _system(spec: PipelineSpec) -> str:
    return SYSTEM_PROMPT if spec.data.system is None else spec.data.system


def _rejects(run: Run, name: str) -> Rejects:
    """Where broken records go; a name that tells whose they are."""
    return Rejects(run.folder / name, run.pipeline.spec.data.on_error)


def _oasst(run: Run, source: OasstSource, raw: Path) -> dict[str, int]:
    spec = run.pipeline.spec
    path = run.resolve(source.path)
    rejected: dict[str, int] = {}
    modes: tuple[tuple[str, Mode], ...] = (("value", TEACH), ("annotate", WRITE))
    for part, mode in modes:
        rules = preprocessing.Rules(
            mode=mode,
            split_ratio=source.split_ratio,
            seed=source.seed,
            system=_system(spec),
            limit=source.limit,
            tokens=spec.model.chat_tokens.tokens(),
        )
        rejected = preprocessing.preprocess(path, raw / part, rules, on_error=spec.data.on_error).rejected
    if rejected:
        (raw / "value.rejected.jsonl").replace(run.folder / "oasst.rejected.jsonl")
    return rejected


def _rated_text(run: Run, source: RatedTextSource, raw: Path) -> dict[str, int]:
    spec = run.pipeline.spec
    described = source.model_dump()
    described["files"] = [{"path": str(run.resolve(file.path)), "prompt": file.prompt} for file in source.files]
    tables = rated_text.RatedText.from_dict({**described, "system": _system(spec)})
    paths: dict[rated_text.Part, Path] = {
        "train": raw / "value_train.jsonl",
        "validation": raw / "value_val.jsonl",
        "hidden_train": raw / "hidden_train.jsonl",
        "hidden_validation": raw / "hidden_val.jsonl",
    }
    with _rejects(run, "rated_text") as rejects:
        placed = rated_text.read_rated_text(tables, spec.attributes.schema_(), rejects, tokens=spec.model.chat_tokens.tokens())
        rated_text.split_records(placed, paths)
    for split in SPLITS:
        _to_be_labelled([raw / f"hidden_{split}.jsonl", raw / f"value_{split}.jsonl"], raw / f"annotate_{split}.jsonl")
    return dict(rejects.counts)


def _helpsteer(run: Run, source: HelpSteerSource, raw: Path) -> dict[str, int]:
    spec = run.pipeline.spec
    path = run.resolve(source.path)
    splits: tuple[tuple[Split, helpsteer.Split], ...] = (("train", "train"), ("val", "validation"))
    with _rejects(run, "helpsteer") as rejects:
        for split, theirs in splits:
            reading = helpsteer.Reading(mode=TEACH, system=_system(spec), tokens=spec.model.chat_tokens.tokens())
            records = helpsteer.read_helpsteer(path, theirs, rejects, preference=source.preference, reading=reading)
            write_records(raw / f"value_{split}.jsonl", records)
            _to_be_labelled([raw / f"value_{split}.jsonl"], raw / f"annotate_{split}.jsonl")
    return dict(rejects.counts)


def _records(run: Run, source: RecordsSource, raw: Path) -> dict[str, int]:
    spec = run.pipeline.spec
    labelled: dict[Split, Path] = {"train": run.resolve(source.train), "val": run.resolve(source.validation)}
    with _rejects(run, "records") as rejects:
        for split, path in labelled.items():
            records = read_records(path, rejects, tokens=spec.model.chat_tokens.tokens(), schema=spec.attributes.schema_())
            write_records(raw / f"value_{split}.jsonl", (_typed(record, TEACH) for record in records))
            _to_be_labelled([raw / f"value_{split}.jsonl"], raw / f"annotate_{split}.jsonl")
        if source.unlabelled:
            records = read_records(run.resolve(source.unlabelled), rejects, tokens=spec.model.chat_tokens.tokens())
            write_records(raw / "annotate_train.jsonl", (_typed(record, WRITE) for record in records))
    return dict(rejects.counts)


def _to_be_labelled(sources: Iterable[Path], target: Path) -> None:
    write_records(target, (_typed(record, WRITE) for source in sources for record in _plain_records(source)))


def _plain_records(path: Path) -> Iterator[Record]:
    with Rejects(path, "fail") as rejects:
        yield from read_records(path, rejects)


def _typed(record: Record, mode: Mode) -> Record:
    return {**record, "type": mode}


READERS: Mapping[type[Source], Callable[[Run, Any, Path], dict[str, int]]] = {
    OasstSource: _oasst,
    RatedTextSource: _rated_text,
    HelpSteerSource: _helpsteer,
    RecordsSource: _records,
}
"""How each kind of source becomes record files."""
