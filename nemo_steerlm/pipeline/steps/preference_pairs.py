"""Pairs of answers from a file, read by the value model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_steerlm.client.bulk import read_turns
from nemo_steerlm.core.conversation import ASSISTANT, SYSTEM_PROMPT, USER, Conversation, Turn
from nemo_steerlm.core.errors import DataError, Where, shown
from nemo_steerlm.data.records import read_lines
from nemo_steerlm.evaluation.pairs import PairFigures, pair_figures
from nemo_steerlm.pipeline.evaluate_spec import PairsSpec
from nemo_steerlm.pipeline.run_context import Run

SIDES = ("chosen", "rejected")
SPEAKERS = {"user": USER, "assistant": ASSISTANT}


def evaluate_pairs(run: Run, how: PairsSpec) -> PairFigures:
    """Let the run's value servers read both answers of each pair. Raises DataError naming file, line and field."""
    system = SYSTEM_PROMPT if run.pipeline.spec.data.system is None else run.pipeline.spec.data.system
    pairs = read_pairs(run.resolve(how.path), system)
    asked = [conversation for pair in pairs for conversation in pair]
    read = [found.expected for found in read_turns(run.servers["value"], asked, lambda n: run.progress(n, len(asked), phase="pairs"))]
    prompts = [json.dumps([turn.text for turn in chosen.turns[:-1]]) for chosen, _ in pairs]
    return pair_figures(prompts, read[::2], read[1::2], how.weights)


def read_pairs(path: Path, system: str) -> list[tuple[Conversation, Conversation]]:
    """Each pair as two conversations, the preferred answer's first.

    Args:
        path: JSON lines with ``prompt``, ``chosen`` and ``rejected``; texts, or lists of messages.
        system: System prompt of those that bring none.

    Returns:
        The conversations; each ends with an answer.

    Raises:
        DataError: Naming file, line and field.
    """
    pairs = []
    for line in read_lines(path):
        where = Where(file=str(path), line=line.number)
        one, other = (_conversation(line.record, side, system, where) for side in SIDES)
        pairs.append((one, other))
    return pairs


def _conversation(record: Mapping[str, Any], side: str, system: str, where: Where) -> Conversation:
    said = [*_messages(record, "prompt", "user", where), *_messages(record, side, "assistant", where)]
    systems = [text for role, text in said if role == "system"]
    turns = tuple(Turn(speaker=SPEAKERS[role], text=text) for role, text in said if role != "system")
    if len(turns) < 2 or turns[0].speaker != USER or turns[-1].speaker != ASSISTANT:
        raise DataError("no question and answer", where=where.at(side), instead="end prompt with the user's turn, and let each side answer")
    return Conversation(turns=turns, system="\n\n".join(systems) if systems else system, mask=USER)


def _messages(record: Mapping[str, Any], key: str, role: str, where: Where) -> list[tuple[str, str]]:
    found = record.get(key)
    if isinstance(found, str):
        return [(role, found)]
    if not isinstance(found, list) or not found:
        what = f"missing key {key!r}" if key not in record else f"{key} is {shown(found)}"
        raise DataError(what, where=where.at(key), instead="write a text, or a list of messages with role and content")
    messages = []
    for i, message in enumerate(found):
        at = where.at(f"{key}[{i}]")
        if not isinstance(message, dict) or message.get("role") not in (*SPEAKERS, "system") or not isinstance(message.get("content"), str):
            raise DataError(f"message is {shown(message)}", where=at, instead='write {"role": "user" or "assistant", "content": …}')
        messages.append((message["role"], message["content"]))
    return messages
