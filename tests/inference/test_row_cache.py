"""A cache of rows that come and go, held to what each row was given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_steerlm.inference.blocks import Block, RowCache, appended

LAYERS, HEADS, SIZE = 2, 2, 3
CPU = torch.device("cpu")


@dataclass
class Rows:
    """A cache, and beside it the numbers that each of its rows was given."""

    cache: RowCache
    given: list[list[float]]
    counter: float = 0.0

    def read(self, widths: list[int], active: list[int] | None = None) -> None:
        """Give ``widths`` new tokens to the active rows. What is in the buffers elsewhere is made useless first, as engines leave it."""
        rows = list(range(len(self.given))) if active is None else active
        block = Block([[1] * width for width in widths], [0] * len(rows))
        states = torch.full((len(rows), HEADS, block.tokens.shape[1], SIZE), -1.0)
        for i, (row, width) in enumerate(zip(rows, widths, strict=True)):
            for column in range(block.padding(i), block.tokens.shape[1]):
                self.counter += 1
                states[i, :, column] = self.counter
                self.given[row].append(self.counter)
            assert width == block.widths[i]
        with appended(self.cache, block, active, dtype=torch.float32, device=CPU):
            for layer in range(LAYERS):
                keys, values = self.cache.update(states + layer, -states - layer, layer)
                assert keys.shape == values.shape == (len(rows), HEADS, self.cache.start + block.tokens.shape[1], SIZE)
                assert keys.isfinite().all(), "masked weights are 0, and 0 times NaN is NaN"
                assert values.isfinite().all()

    def check(self) -> None:
        """Each row sees what it was given, in order, in every layer."""
        assert self.cache.visible.shape == (len(self.given), self.cache.length)
        for row, numbers in enumerate(self.given):
            seen = self.cache.visible[row].nonzero()[:, 0]
            for layer in range(len(self.cache.keys)):
                assert (self.cache.keys[layer][row][:, seen, 0] - layer).tolist() == [numbers] * HEADS
                assert (-self.cache.values[layer][row][:, seen, 0] - layer).tolist() == [numbers] * HEADS


def fresh(widths: list[int], counter: float) -> Rows:
    rows = Rows(RowCache(len(widths)), [[] for _ in widths], counter)
    rows.read(widths)
    return rows


widths = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@given(st.data())
def test_rows_keep_what_they_were_given_whoever_comes_and_goes(data):
    rows = fresh(data.draw(widths), 0.0)
    for _ in range(data.draw(st.integers(1, 12))):
        count = len(rows.given)
        match data.draw(st.sampled_from(("step", "some", "leave", "repeat", "join"))):
            case "step":
                rows.read([1] * count)
            case "some":
                active = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
                rows.read(data.draw(st.lists(st.integers(1, 30), min_size=len(active), max_size=len(active))), active)
            case "leave":
                kept = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
                rows.cache.select(kept)
                rows.given = [rows.given[i] for i in kept]
            case "repeat":
                kept = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=6))
                rows.cache.select(kept)
                rows.given = [list(rows.given[i]) for i in kept]
            case "join" if count < 12:
                others = fresh(data.draw(widths), rows.counter)
                rows.cache.append(others.cache)
                rows.given, rows.counter = rows.given + others.given, others.counter
        rows.check()


def test_rows_that_leave_and_join_stay_in_the_buffers_that_are_there():
    rows = fresh([5] * 8, 0.0)
    buffers = [tensor.data_ptr() for tensor in rows.cache.keys]
    rows.cache.select([0, 2, 3, 5, 6])
    rows.given = [rows.given[i] for i in (0, 2, 3, 5, 6)]
    rows.cache.append((others := fresh([3, 4], 100.0)).cache)
    rows.given += others.given
    rows.read([1] * 7)
    rows.check()
    assert [tensor.data_ptr() for tensor in rows.cache.keys] == buffers, "copying everything costs more than a step"
    rows.cache.select(range(5))
    rows.cache.append((longer := fresh([30], 200.0)).cache)
    rows.given = rows.given[:5] + longer.given
    rows.check()


def test_memory_is_given_back_and_forgotten_columns_are_dropped():
    rows = fresh([100, *[4] * 7], 0.0)
    rows.cache.select(range(1, 8))
    assert rows.cache.length < 100, "only the row that left saw the first columns"
    rows.given = rows.given[1:]
    rows.check()
    rows.cache.select([0])
    assert rows.cache.keys[0].shape[0] == 1
