"""OpenAssistant message trees as conversations: every path from the root to a leaf. Upstream: NeMo sft/preprocessing.py.

Open-Assistant's own format page calls ``labels`` optional, and ``replies`` of a leaf. Trees from the hub's tables have their labels as
``{"name": […], "value": […]}``.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from nemo_steerlm.core.attributes import AttributeSchema, preset
from nemo_steerlm.core.conversation import ASSISTANT, SYSTEM_PROMPT, USER, Conversation, Mode, Turn
from nemo_steerlm.core.errors import DataError, Where, shown
from nemo_steerlm.core.labels import LANGUAGE_KEY, join
from nemo_steerlm.core.template import ChatTokens, first_marker
from nemo_steerlm.data.records import Record

UPSTREAM = preset("oasst")
RATED = UPSTREAM.names
"""What volunteers rated, from 0 to 1, and upstream keeps."""

DELETED = "deleted message"
WITHOUT_TEXT = "message without text"

_SPEAKERS = {"prompter": USER, "assistant": ASSISTANT}
_KINDS: dict[object, str] = {dict: "an object", list: "a list", str: "a string"}
_MISSING: Any = object()


class Node(NamedTuple):
    """One message of a tree in depth-first order. Its ancestors are the nearest earlier nodes of each smaller depth."""

    depth: int
    turn: Turn
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
    left_out: collections.Counter[str]
    """Messages that end their branch, by reason; what is below one of them is not counted."""

    @property
    def languages(self) -> set[str]:
        """Languages of its turns."""
        return {node.turn.language for node in self.nodes if node.turn.language is not None}

    @property
    def rated(self) -> int:
        """How many of its turns have a rating of at least one attribute."""
        return sum(bool(node.turn.label) and not str(node.turn.label).startswith(f"{LANGUAGE_KEY}:") for node in self.nodes)

    def conversations(self, *, mask: str = USER, mode: Mode = "TEXT_TO_VALUE", system: str = SYSTEM_PROMPT) -> Iterator[Conversation]:
        """A conversation for each path of at least two turns from the root to a leaf.

        Turns that paths share are shared objects, and one path is held at a time.
        """
        path: list[Turn] = []
        for node in self.nodes:
            del path[node.depth :]
            path.append(node.turn)
            if node.is_leaf and node.depth:
                yield Conversation(turns=tuple(path), system=system, mask=mask, mode=mode, tree_id=self.tree_id)


class Rated(NamedTuple):
    """How a message is read."""

    schema: AttributeSchema = UPSTREAM
    """What labels are encoded with: the attributes that it has and the data rates, in its order and on its scales."""
    any_language: bool = True
    """Whether labels may name languages that the schema does not list, as upstream's do."""
    tokens: ChatTokens | None = None
    """Control strings that nobody may have typed."""
    skip_deleted: bool = False
    """Whether a message that is marked deleted ends its branch though it has its text: upstream keeps it."""

    @property
    def keeps_empty(self) -> bool:
        """Whether a turn of which nothing that counts was rated has an empty label, as upstream's; else it has none."""
        return self.schema == UPSTREAM


def parse_tree(raw: Record, where: Where, *, mask: str = USER, rated: Rated | None = None) -> Tree:
    """The tree of one line, any depth. A message whose text is null, as that of a deleted one may be, ends its branch.

    Raises DataError where ``message_tree_id``, ``prompt``, ``text``, ``role`` or a label's ``value`` is missing or something is of the
    wrong kind, a rating lies outside 0 to 1, the assistant speaks first, ``mask`` is silent on a path, or somebody typed a marker.
    """
    rated = rated or Rated()
    nodes: list[Node] = []
    left_out: collections.Counter[str] = collections.Counter()
    stack: list[tuple[Any, _Place]] = [(_get(raw, "prompt", dict, where), _Place(None, 0, 0))]
    if reason := _gone(stack[0][0], rated):
        left_out[reason] += 1
        stack.clear()
    while stack:
        message, place = stack.pop()
        turn, replies = _message(message, place, where, rated)
        kept = []
        for i, reply in enumerate(replies):
            if reason := _gone(reply, rated):
                left_out[reason] += 1
            else:
                kept.append((reply, _Place(place, i, place.depth + 1)))
        nodes.append(Node(place.depth, turn, not kept))
        stack.extend(reversed(kept))
    _require_role(nodes, mask, where)
    return Tree(_get(raw, "message_tree_id", str, where), nodes, left_out)


def _gone(message: object, rated: Rated) -> str | None:
    """Why a message ends its branch; None where it does not."""
    if not isinstance(message, dict):
        return None
    if message.get("text", "") is None:
        return WITHOUT_TEXT
    return DELETED if rated.skip_deleted and message.get("deleted") is True else None


def _require_role(nodes: list[Node], mask: str, where: Where) -> None:
    found: list[bool] = []
    for node in nodes:
        del found[node.depth :]
        found.append(node.turn.speaker == mask or (bool(found) and found[-1]))
        if node.is_leaf and node.depth and not found[-1]:
            at = where.at("prompt")
            raise DataError(f"mask role {shown(mask)} is not in the conversation", where=at, instead="let both roles speak on every path")


def _message(raw: object, place: _Place, line: Where, rated: Rated) -> tuple[Turn, list[object]]:
    try:
        turn = _turn(raw, place, rated)
        return turn, _optional(raw, "replies", list) or []
    except DataError as error:
        where = place.where(line)
        raise DataError(error.reason, where=where.at(error.where.field) if error.where.field else where, instead=error.instead) from error


def _turn(raw: object, place: _Place, rated: Rated) -> Turn:
    if not isinstance(raw, dict):
        raise DataError(f"message is {shown(raw)}", instead="write an object")
    role, text = _get(raw, "role", str, Where()), _get(raw, "text", str, Where())
    if role not in _SPEAKERS:
        raise DataError(f"unknown role {shown(role)}", where=Where(field="role"), instead="write prompter or assistant")
    if not place.depth and _SPEAKERS[role] == ASSISTANT:
        raise DataError("the conversation starts with the assistant", where=Where(field="role"), instead="begin with a prompter")
    if rated.tokens is not None and (found := first_marker(text, rated.tokens)) is not None:
        raise DataError(
            f"control token {shown(found)} in the text", where=Where(field="text"), instead="remove it, or choose other chat tokens"
        )
    labels, language = _optional(raw, "labels", dict), _optional(raw, "lang", str)
    language = language.split("-")[0] or None if language else None
    label = None if labels is None else _label(_ratings(labels), language, rated)
    return Turn(speaker=_SPEAKERS[role], text=text, label=label, language=language)


def _label(ratings: Mapping[str, float], language: str | None, rated: Rated) -> str | None:
    schema = rated.schema
    fields: dict[str, int | str] = {
        a.name: a.low + round(ratings[a.name] * (a.high - a.low))  # halves to the even neighbour, as upstream
        for a in schema.attributes
        if a.name in ratings
    }
    if language is not None and schema.languages:
        if language not in schema.languages and not rated.any_language:
            known = " ".join(schema.languages)
            raise DataError(f"unknown language {shown(language)}", where=Where(field=LANGUAGE_KEY), instead=f"known: {known}")
        fields[LANGUAGE_KEY] = language
    return join(fields) if fields or rated.keeps_empty else None


def _ratings(labels: Mapping[str, Any]) -> dict[str, float]:
    """Ratings from 0 to 1 by name, those that upstream keeps; one whose value is null is absent. Raises DataError."""
    field = "labels"
    names, values = labels.get("name"), labels.get("value")
    if isinstance(names, list) or isinstance(values, list):
        if not isinstance(names, list) or not isinstance(values, list) or len(names) != len(values):
            raise DataError("name and value are not lists of one length", where=Where(field=field), instead="write a value for each name")
        labels = {str(name): {"value": value} for name, value in zip(names, values, strict=True)}
    found: dict[str, float] = {}
    for name in RATED:
        if labels.get(name) is None:
            continue
        at = Where(field=f"{field}.{name}")
        value = _get(labels[name], "value", (int, float, type(None)), at)
        if value is None:
            continue
        if not 0 <= value <= 1:
            raise DataError(f"label out of range: {name} is {shown(value)}", where=at.at("value"), instead="write a number from 0 to 1")
        found[name] = value
    return found


def _optional(raw: Any, key: str, kind: type) -> Any:
    return None if isinstance(raw, dict) and raw.get(key) is None else _get(raw, key, kind, Where())


def _get(raw: Any, key: str, kind: type | tuple[type, ...], where: Where) -> Any:
    if not isinstance(raw, dict):
        raise DataError(f"found {shown(raw)}", where=where, instead="write an object")
    value = raw.get(key, _MISSING)
    if value is _MISSING:
        raise DataError(f"missing key {key!r}", where=where.at(key), instead=f"found: {', '.join(raw) or 'no keys'}")
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{key} is {shown(value)}", where=where.at(key), instead=f"write {_KINDS.get(kind, 'a number')}")
    return value
