"""Answers to many prompts without a server: the loop around an engine that a scheduler is where requests come one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from nemo_steerlm.inference.engine import Engine, GenerationRequest


class Generated(NamedTuple):
    """One answer's tokens, without the one that ended it."""

    ids: list[int]
    ended: bool
    """Whether a stop token ended it; else it was cut."""


def generate(engine: Engine, requests: Sequence[GenerationRequest], max_tokens: int, progress: Callable[[int], None]) -> list[Generated]:
    """Generate an answer to each request, as many at once as ``engine`` takes.

    Args:
        engine: No other rows run in it.
        requests: Their ``stop_ids`` end them.
        max_tokens: Longest answer.
        progress: Called after each answer with the number of answers so far.

    Returns:
        The answers, in the order of ``requests``.
    """
    waiting = list(enumerate(requests))[::-1]
    written: dict[int, list[int]] = {}
    done: dict[int, Generated] = {}
    while waiting or written:
        while waiting and len(written) < engine.max_rows:
            row, request = waiting.pop()
            engine.add(row, request)
            written[row] = []
        for row, token in engine.step().items():
            ended = token.token in requests[row].stop_ids
            if not ended:
                written[row].append(token.token)
            if ended or len(written[row]) >= max_tokens:
                done[row] = Generated(written.pop(row), ended)
                engine.remove(row)
                progress(len(done))
    return [done[row] for row in range(len(requests))]
