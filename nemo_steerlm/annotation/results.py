"""From labels to files: the labelled records in input order, the rejects with their reasons, and the summary of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from nemo_steerlm.client.labelling import TurnLabel
from nemo_steerlm.core.attributes import AttributeSchema
from nemo_steerlm.core.conversation import Conversation
from nemo_steerlm.core.errors import DataError, TryAgainError, Where
from nemo_steerlm.core.files import atomic_write, json_line
from nemo_steerlm.data.rejects import Rejects


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The counts of a labelling run."""

    model: str
    """The ``label_source`` of the labels."""
    total: int
    labelled: int
    """Records in the output."""
    failed: int
    """Records among the rejects that are broken or that no server could label. 0 if the output is complete."""
    unsure: int
    """Records among the rejects because of ``min_confidence``."""
    turns: int
    """Turns with a predicted label in the output."""
    schema: AttributeSchema | None = None
    """The labels' schema; None after a merge."""
    resumed: int
    """Records that an earlier run had labelled."""
    seconds: float
    output: str
    rejects: str | None
    """The file of rejects; None if there are none."""
    reasons: dict[str, int] = {}
    """Number of rejects by reason."""

    @property
    def complete(self) -> bool:
        """Whether every record was labelled."""
        return self.failed == 0


def labelled(conversation: Conversation, labels: Sequence[TurnLabel], source: str, *, confidence: bool = False) -> Conversation:
    """``conversation`` with predictions in ``label``, the human's label (if any) in ``gt_label``, and ``source`` in each labelled turn.

    Upstream: attribute_annotate.py, which has no ``label_source``. In a conversation that was labelled before, an earlier prediction is
    replaced and never taken for a human's label.
    """
    turns = list(conversation.turns)
    for label in labels:
        turns[label.index] = turns[label.index].predicted(label.label, source, label.confidence if confidence else None)
    return msgspec.structs.replace(conversation, turns=tuple(turns))


def require_confidence(labels: Sequence[TurnLabel], least: float, where: Where) -> None:
    """Check that every chosen value is probable enough.

    Raises:
        DataError: If a value's probability is below ``least``.
    """
    for label in labels:
        for name, probability in (label.confidence or {}).items():
            if probability < least:
                raise DataError(
                    f"{name} is below --min-confidence",
                    where=where.at(f"conversations[{label.index}].label"),
                    instead=f"probability {probability:.3f}, wanted {least:g}",
                )


class ResultWriter:
    """Writes output and rejects and counts records. Both files appear whole if the block ends without an exception."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.rejects = Rejects(output, "skip")
        self.labelled = self.turns = self.failed = self.unsure = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> ResultWriter:
        with disk_errors(self.output):
            self._stack.enter_context(self.rejects)
            self._file = self._stack.enter_context(atomic_write(self.output))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        with disk_errors(self.output):
            self._stack.__exit__(kind, error, trace)

    def write(self, conversation: Conversation) -> None:
        """Add a labelled conversation."""
        with disk_errors(self.output):
            self._file.write(json_line(conversation.to_record()))
        self.labelled += 1
        self.turns += sum(turn.label_source is not None for turn in conversation.turns)

    def reject(self, error: DataError, raw: bytes | str, *, unsure: bool = False) -> None:
        """Set a record aside with the reason why."""
        with disk_errors(self.output):
            self.rejects.add(error, raw)
        self.unsure += unsure
        self.failed += not unsure

    def summary(self, *, model: str, total: int, resumed: int, seconds: float, schema: AttributeSchema | None = None) -> Summary:
        """The counts, with what the writer cannot know.

        Raises:
            TryAgainError: If they do not add up to ``total``, as when the input changed meanwhile.
        """
        if self.labelled + self.failed + self.unsure != total:
            raise TryAgainError(f"{self.output} has {self.labelled} records and {self.failed + self.unsure} rejects of {total}; run again")
        return Summary(
            model=model,
            total=total,
            labelled=self.labelled,
            failed=self.failed,
            unsure=self.unsure,
            turns=self.turns,
            schema=schema,
            resumed=resumed,
            seconds=round(seconds, 3),
            output=str(self.output),
            rejects=str(self.rejects.path) if self.rejects.count else None,
            reasons=dict(self.rejects.counts),
        )


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn OSError into TryAgainError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise TryAgainError(f"{path} cannot be written: {error.strerror or error}; make room and run the same command again") from error


def summary_json(summary: Summary) -> dict[str, Any]:
    """``summary`` as plain data, without the schema."""
    data: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(summary, schema=None))
    del data["schema"]
    return {**data, "records_per_second": round(summary.total / summary.seconds, 3) if summary.seconds else None}
