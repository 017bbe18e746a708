"""The worker loop: every item once, never more calls at a time than asked for, and nothing left running behind an error."""

from __future__ import annotations

import asyncio

import pytest

from nemo_steerlm.client.workers import run_workers


class Calls:
    """Counts calls that are under way, have returned, and were cancelled."""

    def __init__(self) -> None:
        self.running = self.most = 0
        self.done: list[int] = []
        self.cancelled: list[int] = []
        self.release = asyncio.Event()

    async def __call__(self, item: int) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if item < 0:
                raise ValueError(item)
            await self.wait()
            self.done.append(item)
        except asyncio.CancelledError:
            self.cancelled.append(item)
            raise
        finally:
            self.running -= 1

    async def wait(self) -> None:
        await asyncio.sleep(0)


class Stuck(Calls):
    async def wait(self) -> None:
        await self.release.wait()


@pytest.mark.parametrize("count", [1, 3, 30])
def test_each_item_is_handled_once_and_only_so_many_at_a_time(count: int) -> None:
    async def run() -> Calls:
        calls = Calls()
        await run_workers(range(20), calls, count=count)
        return calls

    calls = asyncio.run(run())
    assert sorted(calls.done) == list(range(20))
    assert calls.most == min(count, 20)


def test_the_first_error_ends_the_others_and_takes_no_further_item() -> None:
    async def run() -> tuple[Calls, list[int]]:
        calls, items = Stuck(), iter([1, 2, -3, 4, 5, 6])
        with pytest.raises(ValueError, match="-3"):
            await run_workers(items, calls, count=3)
        return calls, list(items)

    calls, left = asyncio.run(run())
    assert (calls.running, calls.done, sorted(calls.cancelled)) == (0, [], [1, 2])
    assert left == [4, 5, 6]


def test_whoever_is_cancelled_leaves_no_call_behind() -> None:
    async def run() -> Calls:
        calls = Stuck()
        job = asyncio.create_task(run_workers(range(9), calls, count=4))
        while calls.running < 4:
            await asyncio.sleep(0)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        return calls

    calls = asyncio.run(run())
    assert (calls.running, sorted(calls.cancelled)) == (0, [0, 1, 2, 3])
