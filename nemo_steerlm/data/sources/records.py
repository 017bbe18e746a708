"""Ready-made conversation records as a source."""

from __future__ import annotations

from collections.abc import Iterator

from nemo_steerlm.core.spec import Reference
from nemo_steerlm.data.records import read_checked
from nemo_steerlm.data.sources.source import Placed, Source, SourceContext


class RecordsSource(Source):
    """Ready-made conversation records (JSONL, the tutorial's keys)."""

    train: Reference
    """Labelled records that teach the value model."""
    validation: Reference
    """Labelled records that check it."""
    unlabelled: Reference | None = None
    """More records for the value model to label before the SteerLM model trains; without it, it labels ``train`` and ``validation``."""

    def references(self) -> tuple[str, ...]:
        """The record files."""
        return tuple(path for path in (self.train, self.validation, self.unlabelled) if path)

    def read(self, reading: SourceContext) -> Iterator[Placed]:
        """The records as they are, whatever their type."""
        for conversation in read_checked(reading.resolve(self.train), reading.rejects, tokens=reading.tokens, schema=reading.schema):
            yield Placed("train", conversation, to_label=self.unlabelled is None)
        for conversation in read_checked(reading.resolve(self.validation), reading.rejects, tokens=reading.tokens, schema=reading.schema):
            yield Placed("val", conversation)
        if self.unlabelled:
            for conversation in read_checked(
                reading.resolve(self.unlabelled), reading.rejects, tokens=reading.tokens, schema=reading.schema
            ):
                yield Placed("train", conversation, teaches=False)
