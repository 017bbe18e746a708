"""Conversations as token ids, loss masks and attribute values: read once, checked before any model is loaded, kept in flat arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nemo_steerlm.core.conversation import Conversation, Mode
from nemo_steerlm.core.errors import DataError, Where
from nemo_steerlm.core.labels import LANGUAGE_KEY, split
from nemo_steerlm.core.template import Role, Span, Template, text_of
from nemo_steerlm.core.tokenization import Encoded, TextTokenizer, loss_mask, require_learned, require_own_structure
from nemo_steerlm.data.records import read_lines


class ValueToken(NamedTuple):
    """Where a learned label states an attribute's value: the token at ``position`` of its record."""

    position: int
    attribute: str
    value: int


@dataclasses.dataclass(frozen=True, slots=True)
class ChatDataset:
    """Every record of one file, in file order. Takes five bytes a token."""

    file: str
    mode: Mode | None
    """What its records teach; one file teaches one thing."""
    system: str
    """The system prompt most of its records have."""
    ids: npt.NDArray[np.int32]
    learned: npt.NDArray[np.bool_]
    starts: npt.NDArray[np.int64]
    """Record ``i`` is ``ids[starts[i]:starts[i + 1]]``."""
    values: tuple[tuple[ValueToken, ...], ...]
    """Of each record; only of value-model records."""
    labels: dict[str, frozenset[int]]
    """Attribute names with the values seen in learned labels."""
    languages: frozenset[str]
    max_seq_length: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def record(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Token ids and loss mask of a record, cut on the right to ``max_seq_length`` + 1 as upstream does."""
        window = slice(self.starts[index], min(self.starts[index + 1], self.starts[index] + self.max_seq_length + 1))
        return self.ids[window], self.learned[window]

    def learned_counts(self) -> npt.NDArray[np.int64]:
        """How many tokens each record teaches. The first token of a record has nothing before it to be learned from."""
        return np.array([int(self.record(i)[1][1:].sum()) for i in range(len(self))], dtype=np.int64)

    def lengths(self) -> npt.NDArray[np.int64]:
        """Length of each record as the model sees it, in tokens."""
        return np.minimum(np.diff(self.starts) - 1, self.max_seq_length)


def read_dataset(file: str | Path, template: Template, tokenizer: TextTokenizer, max_seq_length: int) -> ChatDataset:
    """Read, render and tokenize a JSONL file.

    Raises DataError naming the line that is malformed, that teaches another thing than the lines before it, or that has nothing to
    learn within ``max_seq_length`` tokens.
    """
    modes: dict[Mode | None, int] = {}
    systems: dict[str, int] = {}
    labels: dict[str, set[int]] = {}
    languages: set[str] = set()
    ids: list[npt.NDArray[np.int32]] = []
    learned: list[npt.NDArray[np.bool_]] = []
    values: list[tuple[ValueToken, ...]] = []
    for line in read_lines(file):
        where = Where(file=str(file), line=line.number)
        conversation = Conversation.from_record(line.record, where)
        modes.setdefault(conversation.mode, line.number)
        if len(modes) > 1:
            raise DataError(
                f"type {conversation.mode} in a file that starts with type {next(iter(modes))}",
                where=where.at("type"),
                instead="one file teaches one thing",
            )
        try:
            spans = template.render(conversation)
            tokens, offsets = tokenizer.encode_offsets(text_of(spans))
            mask = loss_mask(spans, offsets)
            require_own_structure(spans, tokens, tokenizer)
            # A learned first token does not count: nothing comes before it that could predict it.
            require_learned(Encoded(tokens, [0, *mask[1:]]), max_seq_length)
        except DataError as error:
            raise error.located(file=str(file), line=line.number) from error
        systems[conversation.system] = systems.get(conversation.system, 0) + 1
        for turn in conversation.turns:
            _collect(turn.label, labels, languages)
        values.append(tuple(_value_tokens(spans, offsets)) if conversation.mode == "TEXT_TO_VALUE" else ())
        ids.append(np.array(tokens, dtype=np.int32))
        learned.append(np.array(mask, dtype=np.bool_))
    return ChatDataset(
        file=str(file),
        mode=next(iter(modes)),
        system=max(systems, key=lambda s: systems[s]),
        ids=np.concatenate(ids),
        learned=np.concatenate(learned),
        starts=np.cumsum([0, *(len(i) for i in ids)], dtype=np.int64),
        values=tuple(values),
        labels={name: frozenset(seen) for name, seen in labels.items()},
        languages=frozenset(languages),
        max_seq_length=max_seq_length,
    )


def _collect(label: str | None, labels: dict[str, set[int]], languages: set[str]) -> None:
    for field in split(label or ""):
        if field.name == LANGUAGE_KEY and field.text:
            languages.add(field.text)
        elif field.level is not None:
            labels.setdefault(field.name, set()).add(field.level)


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
