"""``map`` over several processes: results in order, a bounded number of them waiting."""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from nemo_steerlm.core.errors import UsageError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def ordered_map(
    function: Callable[[ItemT], ResultT], items: Iterable[ItemT], *, jobs: int = 1, prepare: Callable[..., None], settings: tuple[Any, ...]
) -> Iterator[ResultT]:
    """``function`` of each item, in order, over ``jobs`` processes; ``prepare(*settings)`` runs once in each of them before.

    Memory stays flat: no more than two items a process are in flight. With one job nothing is started.

    Raises:
        UsageError: If ``jobs`` is less than 1.
    """
    if jobs < 1:
        raise UsageError(f"--jobs {jobs}: use at least one")
    if jobs == 1:
        prepare(*settings)
        yield from map(function, items)
        return
    queue = iter(items)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context, initializer=prepare, initargs=settings) as pool:
        waiting = collections.deque(pool.submit(function, item) for item in itertools.islice(queue, 2 * jobs))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in itertools.islice(queue, 1))
        finally:
            pool.shutdown(cancel_futures=True)


def batches(items: Iterable[ItemT], size: int) -> Iterator[list[ItemT]]:
    """``items`` in lists of ``size``, the last one shorter."""
    queue = iter(items)
    while batch := list(itertools.islice(queue, size)):
        yield batch
