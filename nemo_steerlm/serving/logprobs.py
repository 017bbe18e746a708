"""Log-probabilities as OpenAI's two endpoints write them, and the bytes of tokens that are no whole characters."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from nemo_steerlm.inference.engine import NextToken, TokenLogprob
from nemo_steerlm.serving.prompts import Prompts

_LEAST = -9999.0
"""OpenAI's word for a probability of 0: JSON has no infinity."""
_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


@functools.cache
def _byte_letters() -> dict[str, int]:
    """The letters by which byte-level BPE writes bytes (GPT-2, ``bytes_to_unicode``)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def token_bytes(prompts: Prompts, token: int) -> bytes:
    """What ``token`` adds to the text, in UTF-8: part of a character, where it is no more than that."""
    text = prompts.token_text(token)
    if "\ufffd" not in text:
        return text.encode()
    piece, letters = prompts.tokenizer.piece(token), _byte_letters()
    if found := _BYTE_PIECE.fullmatch(piece):
        return bytes([int(found[1], 16)])
    return bytes(letters[letter] for letter in piece) if piece and all(letter in letters for letter in piece) else text.encode()


def token_name(prompts: Prompts, token: int) -> str:
    r"""A token as ``tokens`` and ``top_logprobs`` name it: its text, or ``bytes:\xe2\x80`` where it is no whole characters."""
    found = token_bytes(prompts, token)
    try:
        return found.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)


def completion_logprobs(
    prompts: Prompts, entries: Sequence[tuple[int, TokenLogprob | None]], offsets: Sequence[int], *, by_id: bool
) -> dict[str, Any]:
    """The ``logprobs`` of a completion.

    Args:
        prompts: Of the model.
        entries: Tokens with their log-probabilities; the first of a prompt has none.
        offsets: Where each token's text begins in the text of the choice, in characters.
        by_id: Whether tokens are named ``token_id:N``.
    """

    def name(token: int) -> str:
        return f"token_id:{token}" if by_id else token_name(prompts, token)

    return {
        "tokens": [name(token) for token, _ in entries],
        "token_logprobs": [found.logprob if found else None for _, found in entries],
        "top_logprobs": [{name(t): p for t, p in reversed(found.top)} if found else None for _, found in entries],
        "text_offset": list(offsets),
    }


def chat_logprobs(prompts: Prompts, tokens: Sequence[NextToken]) -> dict[str, Any]:
    """The ``logprobs`` of a chat choice."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        return {"token": token_name(prompts, token), "logprob": max(logprob, _LEAST), "bytes": list(token_bytes(prompts, token))}

    found = [(token, logprob) for token, logprob, _ in tokens if logprob is not None]
    content = [entry(token, own.logprob) | {"top_logprobs": [entry(t, p) for t, p in own.top]} for token, own in found]
    return {"content": content, "refusal": None}
