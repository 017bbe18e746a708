"""The labels that a SteerLM model is taught under: some left out on purpose (``trainSteer.labelDropout``), and all of them counted."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from nemo_steerlm.core.attributes import AttributeSchema
from nemo_steerlm.core.label_support import LabelSupport
from nemo_steerlm.data.records import Record, read_conversations, read_lines, write_records
from nemo_steerlm.pipeline.train_spec import SteerTrainSpec


def drops_labels(spec: object) -> bool:
    """Whether a training with these settings leaves labels out."""
    return isinstance(spec, SteerTrainSpec) and bool(spec.label_dropout or spec.attribute_dropout)


def write_with_dropout(source: Path, target: Path, spec: SteerTrainSpec, schema: AttributeSchema) -> None:
    """Write the records of ``source`` to ``target``, labels left out as ``spec`` says. The same seed leaves out the same ones."""
    write_records(target, dropped((line.record for line in read_lines(source)), spec, schema))


def dropped(records: Iterable[Record], spec: SteerTrainSpec, schema: AttributeSchema) -> Iterator[Record]:
    """Whole records without labels, and labels without some of their attributes; the language stays. Records keep their order and keys."""
    draw = random.Random(spec.seed)
    for record in records:
        unlabelled = draw.random() < spec.label_dropout
        turns = []
        for turn in record["conversations"]:
            label = turn.get("label")
            if label is not None:
                label = None if unlabelled else _thinned(label, spec.attribute_dropout, schema, draw)
                turn = {**turn, "label": label}  # noqa: PLW2901  the record belongs to the caller
            turns.append(turn)
        yield {**record, "conversations": turns}


def _thinned(label: str, share: float, schema: AttributeSchema, draw: random.Random) -> str | None:
    """``label`` without some of its attributes; None where nothing is left."""
    if not share:
        return label
    found = schema.parse(label)
    return schema.encode({name: value for name, value in found.values.items() if draw.random() >= share}, found.language) or None


def label_support(source: Path, taught: Path, schema: AttributeSchema, *, partial: bool) -> LabelSupport:
    """How often each label of learned turns stands in ``source``, and how many learned turns of ``taught`` have none."""
    labels = [label for label in _learned_labels(source) if label is not None]
    return LabelSupport.count(schema, labels, unlabelled=sum(label is None for label in _learned_labels(taught)), partial=partial)


def _learned_labels(records: Path) -> Iterator[str | None]:
    """What ``core.template`` teaches text under: the labels of all turns but the masked speaker's and the first."""
    for conversation in read_conversations(records):
        yield from (turn.label for i, turn in enumerate(conversation.turns) if i > 0 and turn.speaker != conversation.mask)
