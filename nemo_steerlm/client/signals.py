"""Signals that end an event loop by cancelling its main task."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_until_signal(main: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` that SIGINT and SIGTERM end by cancelling ``main``.

    A signal handler that raises would do so at any point of the loop, which can lose the exception or leave a task waiting forever.
    The handlers are restored at the end. Outside the main thread signals are left alone.

    Raises:
        KeyboardInterrupt: After SIGINT, once ``main`` has cleaned up.
        SystemExit: With code 143 after SIGTERM, once ``main`` has cleaned up.
    """
    caught: list[signal.Signals] = []
    try:
        return asyncio.run(_cancelled_by_signal(main, caught))
    except asyncio.CancelledError:
        if caught and caught[0] is signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM) from None
        raise KeyboardInterrupt from None


async def _cancelled_by_signal(main: Coroutine[Any, Any, T], caught: list[signal.Signals]) -> T:
    if threading.current_thread() is not threading.main_thread():
        return await main
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(main)

    def stop(number: signal.Signals) -> None:
        if not caught:
            caught.append(number)
            task.cancel()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
