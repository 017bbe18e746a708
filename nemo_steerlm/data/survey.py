"""What a source has of each attribute's levels, read the way a pipeline reads it, before one is begun."""

from __future__ import annotations

import collections
import itertools
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from nemo_steerlm.core.attributes import AttributeSchema
from nemo_steerlm.core.conversation import Conversation
from nemo_steerlm.core.errors import DataError, Where
from nemo_steerlm.data.rejects import Rejects
from nemo_steerlm.data.sources.source import Source, SourceContext
from nemo_steerlm.data.splits import Split

MOST = 50_000
"""Conversations that are read."""
EXAMPLES = 5
THIN = 30
"""Rated texts of a level below which it is said that they are few. A rule of thumb: the mean of so many has a standard error of
a fifth of their standard deviation."""


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What was found."""

    levels: dict[str, dict[int, int]]
    """Rated texts by attribute and level, those that are hidden from the value model as well."""
    examples: tuple[Conversation, ...]
    """The first that are rated, of different levels where there are."""
    conversations: dict[Split, int]
    characters: tuple[int, int]
    """Of a conversation and of an answer: 95 of 100 have at most so many."""
    turns: int
    """Of a conversation: 95 of 100 have at most so many."""
    rejected: dict[str, int]
    """Rows that cannot be used, by reason."""

    def thin(self) -> dict[str, dict[int, int]]:
        """The levels that have few texts, and how many they have, by attribute."""
        few = {name: {level: count for level, count in counts.items() if count < THIN} for name, counts in self.levels.items()}
        return {name: counts for name, counts in few.items() if counts}


def survey(source: Source, schema: AttributeSchema, resolve: Callable[[str], Path], system: str = "") -> Survey:
    """Read ``source``, of whose references ``resolve`` knows the files. Raises UsageError and DataError as reading does."""
    levels = {a.name: dict.fromkeys(a.values, 0) for a in schema.attributes}
    splits: collections.Counter[Split] = collections.Counter()
    lengths: list[tuple[int, int, int]] = []
    examples: dict[str, Conversation] = {}
    with tempfile.TemporaryDirectory() as folder:
        with Rejects(Path(folder) / "rows", "skip") as rejects:
            reading = SourceContext(resolve=resolve, schema=schema, rejects=rejects, folder=Path(folder), system=system)
            for place in itertools.islice(source.read(reading), MOST):
                conversation = place.conversation
                splits[place.split] += 1
                lengths.append(_characters(conversation))
                for turn in conversation.turns:
                    label = turn.label or turn.gt_label
                    if label and turn.speaker != conversation.mask:
                        examples.setdefault(label, _shown(conversation))
                        for name, level in schema.parse(label).values.items():
                            levels[name][level] += 1
            rejects.require_kept(len(lengths), Where())
        rejected = dict(rejects.counts)
    if not examples:
        raise DataError(f"of {len(lengths)} conversations none is rated: a value model would have nothing to learn")
    return Survey(
        levels=levels,
        examples=tuple(itertools.islice(examples.values(), EXAMPLES)),
        conversations=dict(splits),
        characters=(_most(length for length, _, _ in lengths), _most(answer for _, answer, _ in lengths)),
        turns=_most(turns for _, _, turns in lengths),
        rejected=rejected,
    )


def _characters(conversation: Conversation) -> tuple[int, int, int]:
    """Of the conversation and of its longest answer, and how many turns it has."""
    answers = [len(turn.text) for turn in conversation.turns if turn.speaker != conversation.mask]
    return len(conversation.system) + sum(len(turn.text) for turn in conversation.turns), max(answers, default=0), len(conversation.turns)


def _most(lengths: Iterable[int]) -> int:
    ordered = sorted(lengths)
    return ordered[int(0.95 * (len(ordered) - 1))] if ordered else 0


def _shown(conversation: Conversation) -> Conversation:
    """As the SteerLM model will train on it: under its labels, hidden ones too."""
    turns = tuple(msgspec.structs.replace(turn, label=turn.label or turn.gt_label, gt_label=None) for turn in conversation.turns)
    return msgspec.structs.replace(conversation, turns=turns, mode="VALUE_TO_TEXT")
