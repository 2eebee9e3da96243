"""Waiting with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


async def within(awaitable: Awaitable[T], seconds: float | None) -> T:
    """The result of ``awaitable``, which is cancelled after ``seconds``; without end for None.

    As ``asyncio.wait_for`` from Python 3.12 on: before, that swallows a cancellation that comes together with the
    result (bpo-37658), and a loop that asks again and again, as ours do, runs on as if nobody had cancelled it.

    Raises:
        asyncio.TimeoutError: it took longer.
    """
    if seconds is None:
        return await awaitable
    future = asyncio.ensure_future(awaitable)
    try:
        done, _ = await asyncio.wait({future}, timeout=seconds)
    except asyncio.CancelledError:
        await _end(future)
        raise
    if not done:
        await _end(future)
        if future.cancelled():
            raise asyncio.TimeoutError
    return future.result()


async def _end(future: asyncio.Future[Any]) -> None:
    future.cancel()
    await asyncio.gather(future, return_exceptions=True)
