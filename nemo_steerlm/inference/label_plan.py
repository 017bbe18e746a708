"""A model's label, compiled to token ids: forced tokens, and slots at which one of a few values is chosen.

``quality:4,toxicity:0,lang:en`` is a run of forced tokens (``quality:``), a choice among the values, a forced run (``,toxicity:``), and so
on. The label is tokenized as a whole, in the place where it stands in a prompt, because that is what the model was trained on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from nemo_steerlm.core.errors import ConfigError, shown
from nemo_steerlm.core.labels import LANGUAGE_KEY, join, split
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.tokenization import TextTokenizer
from nemo_steerlm.inference.engine import Choice


class TreeNode(msgspec.Struct):
    """A prefix of value tokens, and the tokens that may follow it."""

    token: int
    """The token that leads here; -1 at the root."""
    parent: int
    depth: int
    children: dict[int, int | str]
    """Next token to the node it leads to, or to the value it completes."""


class ValueTree(msgspec.Struct, frozen=True):
    """The allowed values of one field as a prefix tree over tokens, the separator that follows included.

    The separator matters where one value starts another: after ``1`` either ``0`` or ``,`` follows. Each node's choice is among its
    children only, so the probabilities of all values sum to 1. A node with one child decides nothing and is left out.
    """

    nodes: list[TreeNode]

    @classmethod
    def build(cls, values: dict[str, tuple[int, ...]]) -> ValueTree:
        """From the tokens of every value, its separator last.

        Raises:
            ConfigError: If two values have the same tokens.
        """
        nodes = [TreeNode(-1, -1, 0, {})]

        def grow(at: int, members: list[str]) -> None:
            depth = nodes[at].depth
            for token, group in itertools.groupby(sorted(members, key=lambda v: values[v][depth]), key=lambda v: values[v][depth]):
                same = list(group)
                if len(same) == 1:
                    nodes[at].children[token] = same[0]
                    continue
                if any(len(values[v]) == depth + 1 for v in same):
                    raise ConfigError(f"this tokenizer writes {' and '.join(same)} with the same tokens")
                nodes.append(TreeNode(token, at, depth + 1, {}))
                nodes[at].children[token] = len(nodes) - 1
                grow(len(nodes) - 1, same)

        grow(0, list(values))
        return cls(nodes)

    def path(self, node: int) -> list[int]:
        """The tokens that lead from the root to ``node``."""
        at = self.nodes[node]
        return [] if at.depth == 0 else [*self.path(at.parent), at.token]


class Slot(NamedTuple):
    """One field of a label."""

    name: str
    forced: tuple[int, ...]
    """Tokens before the value, from the end of the value before."""
    values: dict[str, tuple[int, ...]]
    tree: ValueTree

    def choose(self, scores: Sequence[Sequence[float]]) -> Choice:
        """The choice that follows from the scores (logits or log-probabilities) of each tree node's children, in their order."""
        found: dict[str, float] = {}
        reach = [1.0] + [0.0] * (len(self.tree.nodes) - 1)
        for n, (node, row) in enumerate(zip(self.tree.nodes, scores, strict=True)):
            weights = [math.exp(score - max(row)) for score in row]
            for child, weight in zip(node.children.values(), weights, strict=True):
                chance = reach[n] * weight / sum(weights)
                if isinstance(child, str):
                    found[child] = chance
                else:
                    reach[child] = chance
        probabilities = {value: found[value] for value in self.values}
        return Choice(value=max(probabilities, key=probabilities.__getitem__), probabilities=probabilities)


class LabelPlan(NamedTuple):
    """A whole label: its fields in order. What follows the last value belongs to the next turn's prompt."""

    slots: tuple[Slot, ...]

    @property
    def length(self) -> int:
        """The most tokens a label can have."""
        return sum(len(slot.forced) + max(map(len, slot.values.values())) for slot in self.slots) + 1

    def label(self, values: Sequence[str]) -> str:
        """The label string with these values."""
        return join((slot.name, value) for slot, value in zip(self.slots, values, strict=True))


def compile_label(info: ModelInfo, tokenizer: TextTokenizer) -> LabelPlan:
    """The label of ``info``'s schema in ``tokenizer``'s tokens.

    Raises:
        ConfigError: For a tokenizer that merges a value with its neighbours: its labels have no place where a value is chosen.
    """
    fields = {a.name: tuple(map(str, a.values)) for a in info.attributes.attributes}
    if info.attributes.languages:
        fields[LANGUAGE_KEY] = info.attributes.languages
    slots = []
    for k, (name, allowed) in enumerate(fields.items()):
        found = {value: _pieces(info, tokenizer, fields, k, value) for value in allowed}
        befores, afters = {p.before for p in found.values()}, {p.after for p in found.values()}
        if len(befores) > 1 or len(afters) > 1:
            raise ConfigError(f"this tokenizer writes the label differently around different values of {name}: values cannot be scored")
        forced = befores.pop()
        after = afters.pop()
        # Only the stretch since the previous value belongs to this slot.
        start = _previous_end(info, tokenizer, fields, k)
        values = {value: piece.value for value, piece in found.items()}
        tree = ValueTree.build({value: (*tokens, after[0]) for value, tokens in values.items()})
        slots.append(Slot(name, forced[start:], values, tree))
    return LabelPlan(tuple(slots))


class _Pieces(NamedTuple):
    before: tuple[int, ...]
    value: tuple[int, ...]
    after: tuple[int, ...]


def _pieces(info: ModelInfo, tokenizer: TextTokenizer, fields: dict[str, tuple[str, ...]], k: int, value: str) -> _Pieces:
    """The label's tokens before, in and after the value of field ``k``, all other fields at their first value."""
    head = info.tokens.label_start
    label = join((name, value if i == k else values[0]) for i, (name, values) in enumerate(fields.items()))
    text = head + label + info.tokens.end_of_name + info.tokens.turn_start
    field = split(label)[k]
    start = len(head) + field.start
    end = start + len(value)
    ids, offsets = tokenizer.encode_offsets(text)
    for _, (a, b) in zip(ids, offsets, strict=True):
        if any(a < edge < b for edge in (len(head), start, end)):
            merged = f"the value in {shown(join([(field.name, value)]))} with its neighbours ({shown(text[a:b])})"
            raise ConfigError(f"this tokenizer merges {merged}: it cannot be scored")
    edges = [a for a, _ in offsets]
    first, last, body = (next((i for i, a in enumerate(edges) if a >= x), len(ids)) for x in (start, end, len(head)))
    return _Pieces(tuple(ids[body:first]), tuple(ids[first:last]), tuple(ids[last:]))


def _previous_end(info: ModelInfo, tokenizer: TextTokenizer, fields: dict[str, tuple[str, ...]], k: int) -> int:
    """How many label tokens there are up to the end of the value before field ``k``."""
    if k == 0:
        return 0
    name = list(fields)[k - 1]
    piece = _pieces(info, tokenizer, fields, k - 1, fields[name][0])
    return len(piece.before) + len(piece.value)
