"""Where the tensor work of one exchange is done, off the event loop, and what is measured of the exchange."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from peer.rounds.bandwidth import Flows

T = TypeVar("T")


async def compute(work: Callable[[], T]) -> T:
    """Runs tensor work off the event loop: torch and numpy release the GIL in it."""
    return await asyncio.get_running_loop().run_in_executor(None, work)


@dataclass
class Workshop:
    """Of one exchange. flows: what arrives, by sender. codec_seconds: spent on values, in all threads together."""

    flows: Flows = field(default_factory=Flows)
    codec_seconds: float = 0.0

    async def work(self, work: Callable[[], T]) -> T:
        """Runs the encoding, decoding or averaging of one chunk."""

        def timed() -> tuple[T, float]:
            began = time.perf_counter()
            return work(), time.perf_counter() - began

        result, seconds = await compute(timed)
        self.codec_seconds += seconds
        return result
