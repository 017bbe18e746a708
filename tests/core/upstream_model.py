"""Upstream's prompt and loss mask, written down plainly from its rules and used as the oracle. No code of the package is used.

NeMo v2.4.1 gpt_sft_chat_dataset.py: the whole conversation is tokenized once; each turn is tokenized again behind a NUL, to learn how
many tokens it has and where in it the label starts; the mask is counted out from these lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

PREFIX = "\x00"
Encode = Callable[[str], list[int]]


class NotOrdinaryError(Exception):
    """A turn tokenizes differently alone and in the conversation: upstream warns, and its mask is shifted."""


def upstream(record: dict[str, Any], encode: Encode, tokens: tuple[str, str, str, str, str]) -> tuple[list[int], list[int]]:
    """Token ids and loss mask (1 = learned)."""
    start_system, start, start_label, end_turn, end_name = tokens
    kind, masked = record.get("type"), record["mask"]
    header = f"{start_system}System{end_name}{record['system']}{end_turn}"
    turns = [turn_text(turn, kind, start, start_label, end_turn, end_name) for turn in record["conversations"]]
    tail = start if record["conversations"][-1]["from"] != masked else ""
    ids = encode(header + "".join(turns) + tail)

    def alone(text: str) -> list[int]:
        return encode(PREFIX + text)[len(encode(PREFIX)) :]

    learned = [1] * len(ids)
    position = len(encode(header))
    learned[:position] = [0] * position
    if ids[:position] != encode(header):
        raise NotOrdinaryError
    for i, (turn, text) in enumerate(zip(record["conversations"], turns, strict=True)):
        piece = alone(text)
        if ids[position : position + len(piece)] != piece:
            raise NotOrdinaryError
        skip = len(alone(f"{start}{turn['from']}{end_name}"))
        if kind and isinstance(turn.get("label"), str):
            labelled = skip + len(alone(f"{start_label}{turn['label']}{end_name}"))
            skip = past_label(piece, skip, alone(start_label), alone(end_name), kind)
            if kind == "VALUE_TO_TEXT" and skip != labelled:  # the newline after the label became one token with spaces behind it
                raise NotOrdinaryError
        if turn["from"] == masked:
            stop = i > 1 or (i == 1 and kind == "TEXT_TO_VALUE")
            hidden = range(len(alone(start)) if stop else 0, len(piece))
        elif i == 0 and kind != "TEXT_TO_VALUE":
            hidden = range(len(piece))
        else:
            hidden = range(skip)
        for offset in hidden:
            learned[position + offset] = 0
        position += len(piece)
    return ids, learned


def turn_text(turn: dict[str, Any], kind: str | None, start: str, start_label: str, end_turn: str, end_name: str) -> str:
    label = f"{start_label}{turn['label']}{end_name}" if kind and isinstance(turn.get("label"), str) else ""
    name, text = f"{start}{turn['from']}{end_name}", f"{turn['value']}{end_turn}"
    return name + label + text if kind == "VALUE_TO_TEXT" else name + text + label


def past_label(piece: list[int], skip: int, label_ids: list[int], end_ids: list[int], kind: str) -> int:
    found = first(piece, label_ids, 0)
    if kind == "TEXT_TO_VALUE":
        return found + len(label_ids)
    if found != skip:
        raise NotOrdinaryError
    return first(piece, end_ids, found + len(label_ids)) + len(end_ids)


def first(piece: list[int], wanted: list[int], start: int) -> int:
    for i in range(start, len(piece) - len(wanted) + 1):
        if piece[i : i + len(wanted)] == wanted:
            return i
    raise NotOrdinaryError
