"""Cancelling tasks so that nothing they hold stays open."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import anyio


async def cancel_and_wait(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Cancel ``tasks`` and wait until they have ended; their exceptions are dropped.

    The shield matters. When a client hangs up, anyio cancels the waiting task again and again. Without the shield each cancellation would
    reach ``tasks`` too, in the middle of closing their connections, which would then stay open.
    """
    for task in tasks:
        task.cancel()
    with anyio.CancelScope(shield=True):
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # asyncio logs exceptions that nobody retrieves
