"""Ending tasks, so that nothing they hold stays open."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import anyio


async def ended(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Cancel tasks and wait until they have ended, whatever comes of them.

    The shield matters. Where a client hangs up, anyio cancels whoever waits here again and again; awaited directly, the tasks would be
    cancelled again with it, in the middle of closing their connections, which would stay open.
    """
    for task in tasks:
        task.cancel()
    with anyio.CancelScope(shield=True):
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # or asyncio logs that nobody looked at it
