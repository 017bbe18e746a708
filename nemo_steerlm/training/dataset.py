"""Conversations as token ids, loss masks and attribute values, in flat arrays that may be files: checked before a model is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from nemo_steerlm.core.conversation import Conversation, Mode
from nemo_steerlm.core.encoding import Encoded, loss_mask, require_learned, require_own_structure
from nemo_steerlm.core.errors import DataError, Where
from nemo_steerlm.core.labels import LANGUAGE_KEY, split
from nemo_steerlm.core.template import Role, Span, Template, text_of
from nemo_steerlm.core.tokenization import TextTokenizer


class ValueToken(NamedTuple):
    """Where a learned label states an attribute's value: the token at ``position`` of its record."""

    position: int
    attribute: str
    value: int


class DatasetInfo(msgspec.Struct, kw_only=True):
    """What all records of a file say together."""

    mode: Mode | None = None
    """What its records teach; one file teaches one thing."""
    systems: dict[str, int] = msgspec.field(default_factory=dict)
    """How many records have each system prompt."""
    labels: dict[str, set[int]] = msgspec.field(default_factory=dict)
    """Attribute names with the values seen in learned labels."""
    languages: set[str] = msgspec.field(default_factory=set)
    speakers: dict[str, list[int]] = msgspec.field(default_factory=dict)
    """Of each speaker: the turns, and those of them that have labels."""
    spelled: dict[str, dict[int, set[int]]] = msgspec.field(default_factory=dict)
    """Of each attribute: the tokens that its values start with, and the values that start so."""
    attributes: list[str] = msgspec.field(default_factory=list)
    """Their numbers in ``ChatDataset.values`` are their places here."""
    max_seq_length: int
    longest: int = 0
    """Tokens of the longest record, as the model sees it."""
    most_learned: int = 0
    """Tokens at most that a record teaches."""
    cut: int = 0
    """Records that lost their end to ``max_seq_length``."""
    left_out: int = 0
    """Records of which nothing learned is within ``max_seq_length``."""

    @property
    def labelled(self) -> tuple[str, ...]:
        """The speakers most of whose turns have labels."""
        return tuple(sorted(speaker for speaker, (turns, labels) in self.speakers.items() if 2 * labels > turns))

    @property
    def system(self) -> str:
        """The system prompt most of its records have."""
        return max(self.systems, key=lambda s: self.systems[s])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChatDataset:
    """Every record of one file, in file order, as arrays that may be files on disk: the processes of a machine then share them."""

    file: str
    digest: str
    """Of the file."""
    info: DatasetInfo
    ids: npt.NDArray[np.int32]
    learned: npt.NDArray[np.bool_]
    starts: npt.NDArray[np.int64]
    """Record ``i`` is ``ids[starts[i]:starts[i + 1]]``, cut on the right to ``max_seq_length`` + 1 tokens as upstream does."""
    counts: npt.NDArray[np.int32]
    """How many tokens each record teaches. The first token of a record has nothing before it to be learned from."""
    values: npt.NDArray[np.int32]
    """``[n, 3]``: position in its record, number of the attribute, and value of each value token of a learned label."""
    value_starts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def mode(self) -> Mode | None:
        """What its records teach."""
        return self.info.mode

    def record(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Token ids and loss mask of a record."""
        window = slice(self.starts[index], self.starts[index + 1])
        return self.ids[window], self.learned[window]

    def value_tokens(self, index: int) -> list[ValueToken]:
        """Of a record."""
        rows = self.values[self.value_starts[index] : self.value_starts[index + 1]].tolist()
        return [ValueToken(position, self.info.attributes[number], value) for position, number, value in rows]

    def learned_tokens(self, indices: npt.NDArray[np.int64]) -> int:
        """How many tokens these records teach."""
        return int(self.counts[indices].sum())

    def lengths(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Length of each of these records as the model sees it, in tokens."""
        return np.asarray(self.starts[indices + 1] - self.starts[indices] - 1)


class Tokenized(NamedTuple):
    """One record, ready for the arrays."""

    line: int
    mode: Mode | None
    system: str
    labels: tuple[tuple[str, int], ...]
    languages: tuple[str, ...]
    speakers: tuple[tuple[str, bool], ...]
    """Of each turn: who speaks, and whether it has a label."""
    ids: npt.NDArray[np.int32]
    learned: npt.NDArray[np.bool_]
    values: tuple[ValueToken, ...]
    cut: bool
    nothing_left: DataError | None
    """Where nothing learned is within the length."""


def tokenize(record: dict[str, Any], where: Where, template: Template, tokenizer: TextTokenizer, max_seq_length: int) -> Tokenized:
    """Render and encode one record. Raises DataError naming the line where it is malformed or has nothing to learn at all."""
    conversation = Conversation.from_record(record, where)
    nothing_left = None
    try:
        spans = template.render(conversation)
        ids, offsets = tokenizer.encode_offsets(text_of(spans))
        mask = loss_mask(spans, offsets)
        require_own_structure(spans, ids, tokenizer)
        # A learned first token does not count: nothing comes before it that could predict it.
        require_learned(Encoded(ids, [0, *mask[1:]]), len(ids))
    except DataError as error:
        raise error.located(file=where.file, line=where.line) from error
    try:
        require_learned(Encoded(ids, [0, *mask[1:]]), max_seq_length)
    except DataError as error:
        nothing_left = error.located(file=where.file, line=where.line)
    labels, languages = _labels(conversation)
    kept = max_seq_length + 1
    values = [v for v in _value_tokens(spans, offsets) if v.position < kept]
    return Tokenized(
        line=where.line or 0,
        mode=conversation.mode,
        system=conversation.system,
        labels=labels,
        languages=languages,
        speakers=tuple((turn.speaker, bool(turn.label)) for turn in conversation.turns),
        ids=np.array(ids[:kept], dtype=np.int32),
        learned=np.array(mask[:kept], dtype=np.bool_),
        values=tuple(values),
        cut=len(ids) > kept,
        nothing_left=nothing_left,
    )


def _labels(conversation: Conversation) -> tuple[tuple[tuple[str, int], ...], tuple[str, ...]]:
    fields = [field for turn in conversation.turns for field in split(turn.label or "")]
    languages = tuple(field.text for field in fields if field.name == LANGUAGE_KEY and field.text)
    return tuple((f.name, f.level) for f in fields if f.name != LANGUAGE_KEY and f.level is not None), languages


def _value_tokens(spans: Iterable[Span], offsets: list[tuple[int, int]]) -> Iterable[ValueToken]:
    """For every ``name:value`` of a learned label, the first token that reaches into the value."""
    position = token = 0
    for span in spans:
        if span.role is Role.LABEL and span.learned:
            for field in split(span.text):
                if field.level is not None:
                    while token < len(offsets) and offsets[token][1] <= position + field.start:
                        token += 1
                    if token < len(offsets):
                        yield ValueToken(token, field.name, field.level)
        position += len(span.text)
