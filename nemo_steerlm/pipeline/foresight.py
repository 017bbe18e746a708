"""What can be known of a pipeline before anything of it runs: whether its files are there and can be read, and what its base model is."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from pathlib import Path

from nemo_steerlm.core.errors import DataError, UnavailableError
from nemo_steerlm.data.hub import ask_hub, fetch_from_hub
from nemo_steerlm.data.packages import REMOTE, kept_from_package
from nemo_steerlm.data.rejects import Rejects
from nemo_steerlm.data.sources.source import SourceContext
from nemo_steerlm.formats.checkpoint import check_checkpoint
from nemo_steerlm.formats.families.base import ModelConfig
from nemo_steerlm.formats.hf_config import load_config
from nemo_steerlm.formats.nemo_archive import is_nemo
from nemo_steerlm.pipeline.manifest import PipelineSpec
from nemo_steerlm.pipeline.sources import SourceEntry

FIRST = 100
"""Conversations of a source that are read."""


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
        UsageError: If the hub has no such model, data set or file.
        DataError: If a source's first records cannot be used, and the pipeline is to fail then.
        ConfigError: If the base model is of no known family, or something on the hub asks for a token or for consent.
    """
    absent: list[str] = []
    read = {entry.name: count for entry in spec.data.entries if (count := _read(entry, spec, folder, absent)) is not None}
    return Foresight(config=_base(spec.model.base, folder, absent), read=read, absent=list(dict.fromkeys(absent)))


def _base(reference: str, folder: Path, absent: list[str]) -> ModelConfig | None:
    if reference.startswith("hf:"):
        try:
            return load_config(fetch_from_hub(f"{reference}/config.json", "model").parent)
        except UnavailableError as error:
            absent.append(str(error))
        return None
    path = _here(reference, folder, absent)
    return None if path is None or is_nemo(str(path)) else check_checkpoint(path)


def _read(entry: SourceEntry, spec: PipelineSpec, folder: Path, absent: list[str]) -> int | None:
    """How many conversations of a source were read to try; None where its files are not here."""
    references = entry.source.references()
    for reference in references:
        if reference.startswith("hf:"):
            try:
                ask_hub(reference)
            except UnavailableError as error:
                absent.append(str(error))
    places = {reference: _here(reference, folder, absent) for reference in references}
    if None in places.values():
        return None
    with tempfile.TemporaryDirectory() as scratch, Rejects(Path(scratch) / "rows", spec.data.on_error) as rejects:
        reading = SourceContext(
            resolve=lambda reference: places[reference] or folder,
            schema=spec.attributes.schema_(),
            rejects=rejects,
            folder=Path(scratch),
            tokens=spec.model.chat_tokens.tokens(),
            system=spec.data.system,
        )
        count = sum(1 for _ in itertools.islice(entry.source.read(reading), FIRST))
        if not count and rejects.count:
            [(reason, times)] = rejects.counts.most_common(1)
            raise DataError(f"{entry.field}: none of {rejects.count} records can be used", instead=f"{times} of them: {reason}")
        return count


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
