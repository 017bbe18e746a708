"""Attribute scoring: one prefill per turn; only values are chosen, among the allowed ones, and all other label tokens are fed.

Speculative decoding: a turn's text and a guess at its whole label go through the model in one forward. If the model would have chosen
another value, the guess from there on is rolled back (its columns become invisible) and the next forward continues from the model's
choice. The result equals that of choosing value after value; a good guess only makes it faster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec
import torch

from nemo_steerlm.core.conversation import Conversation
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.template import Template, text_of
from nemo_steerlm.core.tokenization import TextTokenizer
from nemo_steerlm.inference.blocks import Block, BlockModel, Part, RowCache, piece_columns, pieces
from nemo_steerlm.inference.engine import Choice, ScoredTurn, ScoreRequest
from nemo_steerlm.inference.label_plan import LabelPlan, TreeNode, compile_label
from nemo_steerlm.inference.prefix_cache import PrefixCache


class _Row:
    """The scoring state of one conversation."""

    def __init__(self, number: int, request: ScoreRequest) -> None:
        self.number = number
        self.conversation: Conversation = request.conversation
        self.turns = list(request.turns)
        self.given = request.given or (None,) * len(request.turns)
        self.ids: list[int] = []
        """Tokens in the cache, by position."""
        self.columns: list[int] = []
        """The cache column of each of them."""
        self.pending: list[int] = []
        """Known tokens not yet in the cache."""
        self.values: list[str] = []
        self.choices: list[Choice] = []
        self.results: list[ScoredTurn] = []

    def given_value(self, name: str) -> str | None:
        """The value of a field of the current turn's label that is to be evaluated, not chosen."""
        values = self.given[len(self.results)]
        return values.get(name) if values else None


class _Plan:
    """One row's input to one forward: pending tokens, then guessed fields; and the positions at which choices are read."""

    def __init__(self) -> None:
        self.chain: list[int] = []
        self.roots: list[int] = []
        """For each verified slot, the chain index whose output decides its first token."""
        self.branches: list[list[int]] = []
        """For each verified slot, block indices of its tree's inner nodes (after the chain)."""
        self.guess: list[str] = []
        self.inner: list[tuple[int, int, int, int]] = []
        """Inner nodes: token, slot's root, parent's block index, depth."""


class AttributeScorer:
    """The scoring loop for one model."""

    def __init__(self, model: BlockModel, tokenizer: TextTokenizer, info: ModelInfo, prefixes: PrefixCache) -> None:
        self._model = model
        self._prefixes = prefixes
        self._tokenizer = tokenizer
        self._template: Template = info.template(tokenizer)
        self.plan: LabelPlan = compile_label(info, tokenizer)
        self._habits = [dict[str, Counter[str]]() for _ in self.plan.slots]
        """For each slot, how often each value followed each value of the slot before."""
        self._tokens = sorted({token for slot in self.plan.slots for node in slot.tree.nodes for token in node.children})
        self._token_index = {token: i for i, token in enumerate(self._tokens)}

    @torch.inference_mode()
    def score(self, requests: Sequence[ScoreRequest]) -> list[list[ScoredTurn]]:
        """The labels of one batch of conversations."""
        rows = [_Row(i, request) for i, request in enumerate(requests)]
        waiting = [row for row in rows if row.turns]
        if not waiting:
            return [row.results for row in rows]
        for row in waiting:
            self._next_turn(row)
        cache = self._begin(waiting)
        while waiting:
            # Turn by turn, so that rows of one forward have similar lengths.
            self._label_turns(cache, waiting)
            alive = [i for i, row in enumerate(waiting) if len(row.results) < len(row.turns)]
            if len(alive) < len(waiting):
                for i, row in enumerate(waiting):
                    if i not in alive:
                        self._prefixes.keep(row.ids, Part(cache, i, row.columns))
                waiting = [waiting[i] for i in alive]
                if waiting:
                    self._drop(cache, waiting, alive)
            for row in waiting:
                self._next_turn(row, cache, waiting.index(row))
        return [row.results for row in rows]

    def _drop(self, cache: RowCache, rows: list[_Row], alive: list[int]) -> None:
        before = cache.length
        cache.select(alive)
        for row in rows:
            row.columns = [column - (before - cache.length) for column in row.columns]

    def _next_turn(self, row: _Row, cache: RowCache | None = None, at: int = 0) -> None:
        """Move ``row`` to its next turn: the part of that prompt that is not in the cache becomes pending."""
        spans = self._template.label_prompt(row.conversation, row.turns[len(row.results)])
        prompt = self._tokenizer.encode(text_of(spans))
        same = 0
        for a, b in zip(prompt[:-1], row.ids, strict=False):
            if a != b:
                break
            same += 1
        if cache is not None:
            self._take_back(cache, at, row, same)
        row.pending = prompt[same:]
        row.values, row.choices = [], []

    def _take_back(self, cache: RowCache, at: int, row: _Row, keep: int) -> None:
        cache.visible[at, row.columns[keep:]] = False
        del row.ids[keep:], row.columns[keep:]

    def _begin(self, rows: list[_Row]) -> RowCache:
        """A cache that holds what is known of all prompts' beginnings."""
        cache, known = self._prefixes.begin([row.pending for row in rows], together=False)
        for row, have in zip(rows, known, strict=True):
            row.ids, row.columns = row.pending[:have], list(range(have))
            del row.pending[:have]
        return cache

    def _label_turns(self, cache: RowCache, rows: list[_Row]) -> None:
        """Predict the label of every row's current turn."""
        active = list(range(len(rows)))
        while active:
            for group in self._groups(rows, active):
                self._read_ahead(cache, rows, group)
                self._verify(cache, rows, group)
            active = [i for i in active if len(rows[i].values) < len(self.plan.slots)]
        for row in rows:
            self._finish(row)

    def _groups(self, rows: list[_Row], active: list[int]) -> list[list[int]]:
        """Active rows grouped so that the forwards, each padded to its longest row, cost least (dynamic programming)."""
        active = sorted(active, key=lambda i: len(rows[i].pending))
        costs, starts = [0], [0]
        for end, i in enumerate(active, 1):
            longest = len(rows[i].pending)
            cost, start = min((costs[start] + (end - start) * longest + self._model.forward_cost, start) for start in range(end))
            costs.append(cost)
            starts.append(start)
        groups, end = [], len(active)
        while end:
            groups.append(sorted(active[starts[end] : end]))
            end = starts[end]
        return groups

    def _read_ahead(self, cache: RowCache, rows: list[_Row], active: list[int]) -> None:
        """Put what is pending, but for its end, into the cache where it is more than one forward takes."""
        read = [rows[i].pending for i in active]
        width = max(map(len, read))
        if width <= piece_columns(len(read), cache.length + width):
            return
        *blocks, _ = pieces(read, [len(rows[i].ids) for i in active], cache.length)
        for block in blocks:
            self._model.forward(cache, block, active)
            for n, i in enumerate(active):
                row, width = rows[i], block.widths[n]
                first = cache.start + block.padding(n)
                row.ids += row.pending[:width]
                row.columns += range(first, first + width)
                del row.pending[:width]

    def _finish(self, row: _Row) -> None:
        index = row.turns[len(row.results)]
        label = self.plan.label(row.values)
        row.results.append(
            ScoredTurn(index=index, label=label, choices={s.name: c for s, c in zip(self.plan.slots, row.choices, strict=True)})
        )
        turns = list(row.conversation.turns)
        turns[index] = msgspec.structs.replace(turns[index], label=label)
        row.conversation = msgspec.structs.replace(row.conversation, turns=tuple(turns))
        habit = ""
        for counts, value in zip(self._habits, row.values, strict=True):
            counts.setdefault(habit, Counter())[value] += 1
            habit = value

    def _verify(self, cache: RowCache, rows: list[_Row], active: list[int]) -> None:
        """One forward for the active rows: pending tokens and guesses in, as many values out as the guesses hold."""
        plans = [self._guess(rows[i], len(active)) for i in active]
        block = _block([rows[i] for i in active], plans)
        reads = [
            (n, block.padding(n) + at)
            for n, plan in enumerate(plans)
            for root, branches in zip(plan.roots, plan.branches, strict=True)
            for at in (root, *branches)
        ]
        scores = iter(self._model.forward(cache, block, active, reads=reads, tokens=self._tokens))
        for n, (i, plan) in enumerate(zip(active, plans, strict=True)):
            row = rows[i]
            first = cache.start + block.padding(n)
            accepted: int | None = None
            for k, guess in enumerate(plan.guess):
                slot = self.plan.slots[len(row.values)]
                outputs = [next(scores) for _ in range(1 + len(plan.branches[k]))]
                if accepted is not None:
                    continue
                choice = slot.choose([self._of_children(node, scores) for node, scores in zip(slot.tree.nodes, outputs, strict=True)])
                value = row.given_value(slot.name) or choice.value
                row.values.append(value)
                row.choices.append(choice)
                if value != guess:
                    accepted = plan.roots[k] + 1
            width = len(plan.chain)
            row.ids += plan.chain
            row.columns += range(first, first + width)
            cache.visible[i, first + width : first + block.widths[n]] = False
            if accepted is not None:
                self._take_back(cache, i, row, len(row.ids) - width + accepted)
            row.pending = []
            if len(row.values) < len(self.plan.slots):
                # The chosen value and the forced run behind it open the next forward.
                last = self.plan.slots[len(row.values) - 1]
                row.pending = [*last.values[row.values[-1]], *self.plan.slots[len(row.values)].forced]

    def _guess(self, row: _Row, rows: int) -> _Plan:
        """Pending tokens, then as much of the label as is worth guessing.

        A wrong guess wastes its tokens in every row, a right one saves a forward.
        """
        plan = _Plan()
        plan.chain = list(row.pending)
        slots = self.plan.slots
        k = len(row.values)
        if k == 0:
            plan.chain += slots[0].forced
        previous = row.values[-1] if row.values else ""
        chance = 1.0
        while True:
            slot = slots[k]
            plan.roots.append(len(plan.chain) - 1)
            given = row.given_value(slot.name)
            value, likely = self._likely(k, previous) if given is None else (given, 1.0)
            plan.guess.append(value)
            plan.branches.append([])
            k += 1
            if k == len(slots):
                break
            chance *= likely
            cost = rows * (1 + len(slots[k].forced))
            if chance * self._model.forward_cost <= (1 - chance) * cost:
                break
            plan.chain += [*slot.values[value], *slots[k].forced]
            previous = value
        width = len(plan.chain)
        for n, root in enumerate(plan.roots):
            tree = slots[len(row.values) + n].tree
            at = {0: -1}
            for node_index, node in enumerate(tree.nodes[1:], 1):
                at[node_index] = width + len(plan.inner)
                plan.branches[n].append(at[node_index])
                plan.inner.append((node.token, root, at[node.parent], node.depth))
        return plan

    def _of_children(self, node: TreeNode, scores: torch.Tensor) -> list[float]:
        found: list[float] = scores[[self._token_index[token] for token in node.children]].tolist()
        return found

    def _likely(self, k: int, previous: str) -> tuple[str, float]:
        """The value that most often followed ``previous``, and its share; nothing if ``previous`` was never seen."""
        counts = self._habits[k].get(previous)
        if not counts:
            return "", 0.0
        value, count = counts.most_common(1)[0]
        return value, count / (counts.total() + 1)


def _block(rows: list[_Row], plans: list[_Plan]) -> Block:
    """The forward's input. Inner nodes of value trees follow the chain; they see the chain up to their root, and their ancestors."""
    block = Block([[*p.chain, *(token for token, *_ in p.inner)] for p in plans], [len(row.ids) for row in rows])
    if not any(p.inner for p in plans):
        return block
    new = block.tokens.shape[1]
    inside = torch.tril(torch.ones(new, new, dtype=torch.bool)) & block.visible[:, None, :]
    for n, (row, plan) in enumerate(zip(rows, plans, strict=True)):
        pad = block.padding(n)
        for offset, (_, root, parent, depth) in enumerate(plan.inner):
            at = pad + len(plan.chain) + offset
            inside[n, at, :] = False
            inside[n, at, pad : pad + root + 1] = True
            if parent >= 0:
                inside[n, at] |= inside[n, pad + parent]
            inside[n, at, at] = True
            block.positions[n, at] = len(row.ids) + root + depth
    block.inside = inside
    return block
