"""The worker loop behind every bulk job: a fixed number of tasks that take the next item as soon as they are free."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def run_workers(items: Iterable[T], handle: Callable[[T], Awaitable[None]], *, count: int) -> None:
    """Call ``handle`` once for each item, with up to ``count`` calls in flight. Items are taken lazily, in order.

    Returns when all calls have returned. If one raises, or the caller is cancelled, the other calls are cancelled and have ended
    before this function raises: nothing that they hold stays open, and no further item is taken.

    Args:
        items: What to do. An iterator may be endless as long as ``handle`` raises at some point.
        handle: Called with one item. Its exceptions are not swallowed; catch what must not end the whole job.
        count: Number of workers.

    Raises:
        Exception: The first exception that a call of ``handle`` raised.
    """
    pending = iter(items)

    async def work() -> None:
        for item in pending:
            await handle(item)

    tasks = [asyncio.create_task(work()) for _ in range(count)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
