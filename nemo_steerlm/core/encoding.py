"""Spans to token ids and loss mask.

The whole prompt is encoded as one string, so ids equal upstream's; the mask comes from the spans, through the character offsets of
the tokens, never from searching the text. A token is learned iff it lies inside a learned stretch: one that straddles a border is
not (upstream counts the tokens of the unlearned prefix by itself, which gives the same).
"""

from __future__ import annotations

import bisect
import collections
import functools
from collections.abc import Sequence
from typing import NamedTuple

from nemo_steerlm.core.errors import DataError, shown
from nemo_steerlm.core.template import Role, Span, learned_intervals, text_of
from nemo_steerlm.core.tokenization import TextTokenizer


class Encoded(NamedTuple):
    """A prompt as token ids, and for each whether it is learned (1) or not (0)."""

    ids: list[int]
    loss_mask: list[int]


def encode_spans(spans: Sequence[Span], tokenizer: TextTokenizer) -> Encoded:
    """Token ids of the prompt and their loss mask (1 = learned)."""
    ids, offsets = tokenizer.encode_offsets(text_of(spans))
    require_own_structure(spans, ids, tokenizer)
    return Encoded(ids, loss_mask(spans, offsets))


def prompt_ids(spans: Sequence[Span], tokenizer: TextTokenizer) -> list[int]:
    """Token ids of the prompt, without a mask. Raises DataError as ``require_own_structure`` does."""
    ids = tokenizer.encode(text_of(spans))
    require_own_structure(spans, ids, tokenizer)
    return ids


def require_own_structure(spans: Sequence[Span], ids: Sequence[int], tokenizer: TextTokenizer) -> None:
    """Raise DataError unless the control tokens in ``ids`` are those that the template wrote: as many of each, and no others.

    ``Escape`` sees to that for every tokenizer known; this is the proof, for the one at hand and the text at hand.
    """
    own: collections.Counter[int] = collections.Counter()
    control = set(tokenizer.special_ids)
    for span in spans:
        if span.role in (Role.MARKER, Role.END):
            tokens = _tokens_within(tokenizer, span.text)
            if span.role is Role.MARKER:
                control.update(tokens if len(tokens) == 1 else ())
            own.update(tokens)
    seen = collections.Counter(filter(control.__contains__, ids))
    for token in seen.keys() | own.keys():
        if seen[token] > own[token] or (seen[token] < own[token] and token in tokenizer.special_ids):
            raise DataError(
                f"text that adds or hides the control token {shown(tokenizer.decode([token]))}", instead="write it in other characters"
            )


@functools.lru_cache(maxsize=256)
def _tokens_within(tokenizer: TextTokenizer, text: str) -> tuple[int, ...]:
    """The tokens that ``text`` becomes between letters."""
    ids, offsets = tokenizer.encode_offsets(f"a{text}a")
    return tuple(token for token, (start, end) in zip(ids, offsets, strict=True) if 1 <= start < end <= 1 + len(text))


def loss_mask(spans: Sequence[Span], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """The loss mask (1 = learned) of tokens at these character offsets of the prompt."""
    intervals = learned_intervals(spans)
    starts = [start for start, _ in intervals]
    mask = []
    for start, end in offsets:
        i = bisect.bisect_right(starts, start) - 1
        # A byte-fallback piece may be empty and sit at a border: it belongs to what starts there.
        inside = i >= 0 and start < intervals[i][1] and end <= intervals[i][1]
        mask.append(int(inside))
    return mask


def require_learned(encoded: Encoded, max_length: int) -> None:
    """Raise DataError where no learned token is left in the first ``max_length`` + 1 ids (upstream: NaN loss, NeMo issue 8025)."""
    if not any(encoded.loss_mask[: max_length + 1]):
        if any(encoded.loss_mask):
            raise DataError(f"nothing to learn within {max_length} tokens", instead="shorten the conversation or raise the length")
        raise DataError("nothing to learn: no learned token", instead="label a turn of a role that is not masked")
