"""Keys and values of texts that were read, for those that begin alike: a system prompt, earlier turns, the answers of one question.

The texts are sorted. The one with the longest common beginning is then a neighbour of the place where a text would stand, so that a lookup
takes as long among thousands as among ten.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from nemo_steerlm.inference.blocks import BlockModel, Part, RowCache, pieces

_LEAST = 16
"""Tokens of a beginning that is worth copying."""


class Known(NamedTuple):
    """A text whose keys and values a cache has."""

    ids: list[int]
    part: Part

    def beginning(self, length: int) -> Part:
        """The part of its first tokens."""
        return self.part._replace(columns=self.part.columns[:length])


class _Kept:
    """A text that stays known, and when it was last looked for."""

    def __init__(self, known: Known, used: int) -> None:
        self.known = known
        self.used = used

    @property
    def ids(self) -> list[int]:
        """Its tokens."""
        return self.known.ids


class PrefixCache:
    """What was read last; the text that was not looked for the longest goes first."""

    def __init__(self, model: BlockModel, most: int) -> None:
        """``most``: tokens to keep. With 0 none are, and only what is read at once is read together."""
        self._model = model
        self.most = most
        self._kept: list[_Kept] = []
        """Sorted; none is the beginning of another."""
        self._room = most
        self._clock = 0
        self.tokens = 0
        """Kept now."""
        self.reused = 0
        """Tokens that were known when a text with them came, so far."""

    def unread(self, ids: list[int], running: Sequence[Known] = ()) -> int:
        """How many of a text's tokens have to be read: the last one at least, whose scores nobody has."""
        return len(ids) - _length(self._longest(ids[:-1], running))

    def begin(self, texts: Sequence[list[int]], running: Sequence[Known] = (), *, together: bool) -> tuple[RowCache, list[int]]:
        """A cache with a row for each text, which has its beginning as far as it is known; the last token never is.

        What several of the texts begin with is read first, where that costs less than to read it in each of them.

        Args:
            texts: Token ids.
            running: What other rows have in their caches.
            together: Whether the rests are read in one block. Then its columns need not be more than the longest text's tokens, because a
                beginning that is too long for that is cut: the block has a place for what is cut.

        Returns:
            The cache, and how many tokens each row has in it: its last columns if ``together``, else the first ones.
        """
        shared, read = self._shared(texts, running)
        parts = [self._longest(text[:-1], [*running, *shared]) for text in texts]
        if together:
            rest = max(len(text) - _length(part) for text, part in zip(texts, parts, strict=True))
            most = max(map(len, texts)) - rest
            parts = [part._replace(columns=part.columns[:most]) if part and most else None for part in parts]
        known = [_length(part) for part in parts]
        self.reused += max(sum(known) - read, 0)
        cache = self._model.cache(len(texts), max(map(len, texts)))
        cache.fill(parts, last=together)
        return cache, known

    def keep(self, ids: list[int], part: Part, answer: int = 0) -> None:
        """Remember a text, whose keys and values ``part`` has, unless it is known.

        Its last ``answer`` tokens are an answer. Of several answers to one prompt the first is kept.
        """
        if not _LEAST <= len(ids) <= self._room:
            return
        kept, same = self._nearest(ids)
        if kept is not None and (same == len(ids) or len(ids) - answer <= same < len(kept.ids)):
            return
        cache = self._model.cache(1, len(ids))
        cache.fill([part])
        self._insert(Known(list(ids), Part(cache, 0, range(len(ids)))))

    def limit(self, tokens: int) -> None:
        """Keep no more than ``tokens`` from now on, and never more than ``most``."""
        self._room = min(tokens, self.most)
        while self._kept and self.tokens > self._room:
            self._drop(min(self._kept, key=lambda kept: kept.used))

    def _shared(self, texts: Sequence[list[int]], running: Sequence[Known]) -> tuple[list[Known], int]:
        """Beginnings of several texts, which have been read now, and the tokens that had to be read for it."""
        ordered = sorted(texts)
        alike = [_common(one[:-1], other[:-1]) for one, other in itertools.pairwise(ordered)]
        shared: list[Known] = []
        read = 0
        for place, same in enumerate(alike):
            ids = ordered[place][:same]
            part = self._longest(ids, [*running, *shared])
            known = _length(part)
            others = next((n for n, length in enumerate(alike[place:]) if length < same), len(alike) - place)
            if same < _LEAST or others * (same - known) <= self._model.forward_cost:
                continue
            cache = self._model.cache(1, same)
            cache.fill([part])
            for block in pieces([ids[known:]], [known], known):
                self._model.forward(cache, block)
            read += same - known
            shared.append(Known(ids, Part(cache, 0, range(same))))
            if same <= self._room:
                self._insert(shared[-1])
        return shared, read

    def _longest(self, ids: list[int], running: Sequence[Known]) -> Part | None:
        """The longest known beginning of ``ids`` that is worth copying."""
        kept, longest = self._nearest(ids)
        best = kept.known if kept else None
        for known in running:
            same = _common(known.ids, ids)
            if same > longest:
                best, longest = known, same
        return best.beginning(longest) if best and longest >= _LEAST else None

    def _nearest(self, ids: list[int]) -> tuple[_Kept | None, int]:
        """The kept text that begins most like ``ids``, and how long it does."""
        place = bisect.bisect_left(self._kept, ids, key=lambda kept: kept.ids)
        beside = [(_common(kept.ids, ids), kept) for kept in self._kept[max(place - 1, 0) : place + 1]]
        same, kept = max(beside, key=lambda pair: pair[0], default=(0, None))
        if kept is not None and same >= _LEAST:  # a text that only stands beside it was not looked for
            self._clock += 1
            kept.used = self._clock
        return kept, same

    def _insert(self, known: Known) -> None:
        place = bisect.bisect_left(self._kept, known.ids, key=lambda kept: kept.ids)
        if place and _common(self._kept[place - 1].ids, known.ids) == len(self._kept[place - 1].ids):
            place -= 1
            self._drop(self._kept[place])
        self._clock += 1
        self._kept.insert(place, _Kept(known, self._clock))
        self.tokens += len(known.ids)
        self.limit(self._room)

    def _drop(self, kept: _Kept) -> None:
        self._kept.remove(kept)
        self.tokens -= len(kept.ids)


def _length(part: Part | None) -> int:
    return len(part.columns) if part else 0


def _common(one: list[int], other: list[int]) -> int:
    """Length of what both begin with: halves are compared as wholes, which is many times faster than token after token."""
    same, most = 0, min(len(one), len(other))
    while same < most:
        middle = (same + most + 1) // 2
        if one[same:middle] == other[same:middle]:
            same = middle
        else:
            most = middle - 1
    return same
