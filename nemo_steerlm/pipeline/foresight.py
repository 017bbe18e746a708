"""What can be known of a pipeline before anything of it runs: whether its files are there and can be read, and what its base model is."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nemo_steerlm.core.errors import UnavailableError, Where
from nemo_steerlm.data.hub import ask_hub, fetch_from_hub
from nemo_steerlm.data.packages import REMOTE, kept_from_package
from nemo_steerlm.data.record_files import RecordFiles
from nemo_steerlm.data.rejects import Rejects
from nemo_steerlm.data.sources.source import Placed, SourceContext, weighted
from nemo_steerlm.data.splits import SPLITS
from nemo_steerlm.data.survey import MOST
from nemo_steerlm.formats.checkpoint import check_checkpoint
from nemo_steerlm.formats.families.base import ModelConfig
from nemo_steerlm.formats.hf_config import load_config
from nemo_steerlm.formats.nemo_archive import is_nemo
from nemo_steerlm.formats.tokenizer_files import write_tokenizer_files
from nemo_steerlm.pipeline.manifest import PipelineSpec
from nemo_steerlm.pipeline.sources import SourceEntry


@dataclasses.dataclass(frozen=True, kw_only=True)
class Foresight:
    """What was found."""

    config: ModelConfig | None
    """Of the base model, where it is here or on the hub."""
    read: dict[str, int]
    """Conversations that were read to try, by source."""
    absent: list[str]
    """What could not be looked at, a sentence each: no mistake where the pipeline runs on another machine."""


def foresee(spec: PipelineSpec, folder: Path) -> Foresight:
    """Look at what a pipeline starts from. Models and data sets on the hub are asked for, not fetched.

    Args:
        spec: The pipeline.
        folder: Where its relative references start.

    Raises:
        UsageError: If the hub has no such model, data set or file, or the base model has no tokenizer.
        DataError: If a source's records cannot be used, and the pipeline is to fail then; or if what they are is not enough.
        ConfigError: If the base model is of no known family, or something on the hub asks for a token or for consent.
    """
    absent: list[str] = []
    read = _read(spec, folder, absent)
    return Foresight(config=_base(spec, folder, absent), read=read, absent=list(dict.fromkeys(absent)))


def _base(spec: PipelineSpec, folder: Path, absent: list[str]) -> ModelConfig | None:
    reference = spec.model.base
    if reference.startswith("hf:"):
        try:
            return load_config(fetch_from_hub(f"{reference}/config.json", "model").parent)
        except UnavailableError as error:
            absent.append(str(error))
        return None
    path = _here(reference, folder, absent)
    if path is None or is_nemo(str(path)):
        return None
    config = check_checkpoint(path)
    with tempfile.TemporaryDirectory() as scratch:
        write_tokenizer_files(path, scratch, spec.model.chat_tokens.tokens().markers)
    return config


def _read(spec: PipelineSpec, folder: Path, absent: list[str]) -> dict[str, int]:
    """How many conversations of each source were read to try, of those whose files are here."""
    places = {entry.name: found for entry in spec.data.entries if (found := _places(entry, folder, absent)) is not None}
    read: dict[str, int] = {}

    def counted(name: str, placed: Iterator[Placed]) -> Iterator[Placed]:
        read[name] = 0
        for place in itertools.islice(placed, MOST):
            read[name] += 1
            yield place

    with tempfile.TemporaryDirectory() as scratch:
        with RecordFiles(Path(scratch)) as files:
            for entry in spec.data.entries:
                if entry.name not in places:
                    continue
                with Rejects(Path(scratch) / "rows", spec.data.on_error) as rejects:
                    reading = SourceContext(
                        resolve=places[entry.name].__getitem__,
                        schema=spec.attributes.schema_(),
                        rejects=rejects,
                        folder=Path(scratch),
                        tokens=spec.model.chat_tokens.tokens(),
                        system=spec.data.system,
                    )
                    files.write(weighted(counted(entry.name, entry.source.read(reading)), entry.weight), entry.name)
                    rejects.require_kept(read[entry.name], Where(field=entry.field))
        if len(read) == len(spec.data.entries) and all(count < MOST for count in read.values()):
            files.require_rated()
            for split in SPLITS:
                files.paths("teach", split)
                files.paths("label", split)
    return read


def _places(entry: SourceEntry, folder: Path, absent: list[str]) -> dict[str, Path] | None:
    """Where the files of a source are; None where one of them is not here."""
    found: dict[str, Path] = {}
    references = entry.source.references()
    for reference in references:
        if reference.startswith("hf:"):
            try:
                ask_hub(reference)
            except UnavailableError as error:
                absent.append(str(error))
        if (place := _here(reference, folder, absent)) is not None:
            found[reference] = place
    return found if len(found) == len(set(references)) else None


def _here(reference: str, folder: Path, absent: list[str]) -> Path | None:
    """Where a reference's file is; None where it would have to be fetched, or is absent, which is noted."""
    if reference.startswith(("pypi:", "pypi-sdist:")):
        return kept_from_package(reference)
    if reference.startswith(REMOTE):
        return None
    if not (folder / reference).exists():
        absent.append(f"{reference}: no such file or folder here (looked at {folder / reference})")
        return None
    return folder / reference
