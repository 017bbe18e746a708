"""OpenAssistant message trees as conversation records: every path from the root to a leaf. Upstream: NeMo sft/preprocessing.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nemo_steerlm.core.attributes import preset
from nemo_steerlm.core.conversation import ASSISTANT, SYSTEM_PROMPT, USER, Mode
from nemo_steerlm.core.errors import DataError, Where, shown
from nemo_steerlm.core.labels import LANGUAGE_KEY
from nemo_steerlm.core.template import ChatTokens, first_marker
from nemo_steerlm.data.records import Record, parse_line, raw_lines
from nemo_steerlm.data.rejects import Rejects

LABELS = preset("oasst").names
HIGHEST = 4
"""Ratings from 0 to 1 become whole numbers from 0 to this, halves to the even neighbour as Python rounds."""

_SPEAKERS = {"prompter": USER, "assistant": ASSISTANT}
_KINDS: dict[object, str] = {dict: "an object", list: "a list", str: "a string"}
_MISSING: Any = object()


class Node(NamedTuple):
    """One message of a tree in depth-first order. Its ancestors are the nearest earlier nodes of each smaller depth."""

    depth: int
    turn: Record
    is_leaf: bool


class _Place(NamedTuple):
    """Where a message stands in its line; printed only when something is wrong with it, so kept as links."""

    above: _Place | None
    position: int
    depth: int

    def where(self, line: Where) -> Where:
        if self.depth > 8:
            return line.at(f"prompt.replies[…{self.depth} levels down].replies[{self.position}]")
        steps = []
        place = self
        while place.above is not None:
            steps.append(f"replies[{place.position}]")
            place = place.above
        return line.at(".".join(["prompt", *reversed(steps)]))


class Tree(NamedTuple):
    """A message tree, checked."""

    tree_id: str
    nodes: list[Node]
    """In depth-first order."""

    @property
    def languages(self) -> set[str]:
        """Languages of its turns."""
        return {node.turn["lang"] for node in self.nodes if "lang" in node.turn}

    def records(self, *, mask: str = USER, mode: Mode = "TEXT_TO_VALUE", system: str = SYSTEM_PROMPT) -> Iterator[Record]:
        """A record for each path of at least two turns from the root to a leaf: upstream's keys and order.

        Turns that paths share are shared objects, and one path is held at a time.
        """
        path: list[Record] = []
        for node in self.nodes:
            del path[node.depth :]
            path.append(node.turn)
            if node.is_leaf and node.depth:
                yield {"conversations": path.copy(), "tree_id": self.tree_id, "system": system, "mask": mask, "type": mode}


def parse_tree(raw: Record, where: Where, *, mask: str = USER, tokens: ChatTokens | None = None) -> Tree:
    """The tree of one line, any depth.

    Raises DataError where ``message_tree_id``, ``prompt``, ``text``, ``role``, ``replies`` or a label's ``value`` is missing or of the
    wrong kind, a message has a language but no ``labels`` (upstream: KeyError), a rating lies outside 0 to 1, the assistant speaks
    first, ``mask`` is silent on a path, or somebody typed one of ``tokens``' markers.
    """
    nodes: list[Node] = []
    stack: list[tuple[object, _Place]] = [(_get(raw, "prompt", dict, where), _Place(None, 0, 0))]
    while stack:
        message, place = stack.pop()
        turn, replies = _message(message, place, where, tokens)
        nodes.append(Node(place.depth, turn, not replies))
        stack.extend((reply, _Place(place, i, place.depth + 1)) for i, reply in reversed(list(enumerate(replies))))
    _require_role(nodes, mask, where)
    return Tree(_get(raw, "message_tree_id", str, where), nodes)


def _require_role(nodes: list[Node], mask: str, where: Where) -> None:
    found: list[bool] = []
    for node in nodes:
        del found[node.depth :]
        found.append(node.turn["from"] == mask or (bool(found) and found[-1]))
        if node.is_leaf and node.depth and not found[-1]:
            at = where.at("prompt")
            raise DataError(f"mask role {shown(mask)} is not in the conversation", where=at, instead="let both roles speak on every path")


def read_oasst(
    path: str | Path,
    rejects: Rejects,
    *,
    mask: str = USER,
    mode: Mode = "TEXT_TO_VALUE",
    system: str = SYSTEM_PROMPT,
    tokens: ChatTokens | None = None,
) -> Iterator[Record]:
    """The records of every tree in a ``.jsonl`` or ``.jsonl.gz`` file, in file order. Bad trees go to ``rejects``."""
    for number, raw in raw_lines(path):
        where = Where(file=str(path), line=number)
        with rejects.catch(raw):
            yield from parse_tree(parse_line(raw, where), where, mask=mask, tokens=tokens).records(mask=mask, mode=mode, system=system)


def _message(raw: object, place: _Place, line: Where, tokens: ChatTokens | None) -> tuple[Record, list[object]]:
    try:
        return _turn(raw, place, tokens), _get(raw, "replies", list, Where())
    except DataError as error:
        where = place.where(line)
        raise DataError(error.reason, where=where.at(error.where.field) if error.where.field else where, instead=error.instead) from error


def _turn(raw: object, place: _Place, tokens: ChatTokens | None) -> Record:
    if not isinstance(raw, dict):
        raise DataError(f"message is {shown(raw)}", instead="write an object")
    nowhere = Where()
    role, text = _get(raw, "role", str, nowhere), _get(raw, "text", str, nowhere)
    if role not in _SPEAKERS:
        raise DataError(f"unknown role {shown(role)}", where=Where(field="role"), instead="write prompter or assistant")
    if not place.depth and _SPEAKERS[role] == ASSISTANT:
        raise DataError("the conversation starts with the assistant", where=Where(field="role"), instead="begin with a prompter")
    if tokens is not None and (found := first_marker(text, tokens)) is not None:
        raise DataError(
            f"control token {shown(found)} in the text", where=Where(field="text"), instead="remove it, or choose other chat tokens"
        )
    turn: Record = {"value": text, "from": _SPEAKERS[role]}
    if raw.get("labels") is not None:
        turn["label"] = encode_labels(_get(raw, "labels", dict, nowhere))
    if raw.get("lang") is not None:
        if "label" not in turn:
            _get(raw, "labels", dict, nowhere)
        turn["lang"] = _get(raw, "lang", str, nowhere).split("-")[0]
        turn["label"] = ",".join(part for part in (turn["label"], f"{LANGUAGE_KEY}:{turn['lang']}") if part)
    return turn


def encode_labels(labels: Mapping[str, Any]) -> str:
    """OASST's ratings as a label string: the tutorial's twelve, in its order, those that are there. Raises DataError."""
    parts = []
    for name in LABELS:
        if name not in labels:
            continue
        at = Where(field=f"labels.{name}")
        value = _get(labels[name], "value", (int, float), at)
        if not 0 <= value <= 1:
            raise DataError(f"label out of range: {name} is {shown(value)}", where=at.at("value"), instead="write a number from 0 to 1")
        parts.append(f"{name}:{round(value * HIGHEST)}")
    return ",".join(parts)


def _get(raw: Any, key: str, kind: type | tuple[type, ...], where: Where) -> Any:
    if not isinstance(raw, dict):
        raise DataError(f"found {shown(raw)}", where=where, instead="write an object")
    value = raw.get(key, _MISSING)
    if value is _MISSING:
        raise DataError(f"missing key {key!r}", where=where.at(key), instead=f"found: {', '.join(raw) or 'no keys'}")
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{key} is {shown(value)}", where=where.at(key), instead=f"write {_KINDS.get(kind, 'a number')}")
    return value
