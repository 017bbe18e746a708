"""The operator's queue: each pipeline at most once in it, and by one worker at a time."""

from __future__ import annotations

import asyncio

import pytest
from steerlm_operator.work_queue import WorkQueue

A, B = ("default", "a"), ("default", "b")


async def taken_now(queue: WorkQueue):
    """What the next worker gets without waiting, or None."""
    try:
        return await asyncio.wait_for(queue.take(), 0.01)
    except asyncio.TimeoutError:
        return None


def test_what_waits_is_not_added_again():
    async def run():
        queue = WorkQueue()
        for name in (A, B, A):
            queue.add(name)
        return [await taken_now(queue) for _ in range(3)]

    assert asyncio.run(run()) == [A, B, None]


def test_a_pipeline_that_a_worker_has_goes_to_no_other_until_it_is_done():
    async def run():
        queue = WorkQueue()
        queue.add(A)
        first = await queue.take()
        queue.add(A)
        meanwhile = await taken_now(queue)
        queue.done(A)
        return first, meanwhile, await asyncio.wait_for(queue.take(), 5)

    assert asyncio.run(run()) == (A, None, A)


@pytest.mark.parametrize(("first", "second"), [(0, 60), (60, 0)])
def test_the_earlier_of_two_times_holds(first, second):
    async def run():
        queue = WorkQueue()
        queue.add_after(A, first)
        queue.add_after(A, second)
        return await asyncio.wait_for(queue.take(), 5)

    assert asyncio.run(run()) == A


def test_a_pipeline_that_is_gone_is_not_looked_at_again():
    async def run():
        queue = WorkQueue()
        queue.add_after(A, 0)
        queue.cancel_timer(A)
        return await taken_now(queue)

    assert asyncio.run(run()) is None


def test_what_waits_and_what_is_worked_on_are_both_late():
    async def run():
        queue = WorkQueue()
        queue.add(A)
        await queue.take()
        queue.add(B)
        late = set(queue.older_than(-1)), queue.older_than(60)
        queue.done(A)
        return *late, queue.older_than(-1)

    assert asyncio.run(run()) == ({A, B}, [], [B])
