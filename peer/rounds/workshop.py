"""Where the tensor work of one exchange is done, off the event loop, and what is measured of the exchange."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from peer.rounds.bandwidth import Flows

T = TypeVar("T")


_MOST_THREADS = 4
"""Each may begin a team of torch's own threads, and no link keeps more than these busy."""


def workers() -> Executor:
    """Threads for the encoding, decoding and averaging of one peer, no more than torch takes.

    On few cores more, as asyncio's own executor has, keep each other and the event loop waiting: a peer whose loop is
    late is taken for one that is gone. And each peer has its own, or one whose work waits would hold up another's.
    """
    return ThreadPoolExecutor(min(_MOST_THREADS, torch.get_num_threads()), thread_name_prefix="tensors")


@dataclass
class Workshop:
    """Of one exchange. flows: what arrives, by sender. codec_seconds: spent on values, in all threads together."""

    workers: Executor
    flows: Flows = field(default_factory=Flows)
    codec_seconds: float = 0.0

    async def work(self, work: Callable[[], T]) -> T:
        """Runs the encoding, decoding or averaging of one chunk: torch and numpy release the GIL in it."""

        def timed() -> tuple[T, float]:
            began = time.perf_counter()
            return work(), time.perf_counter() - began

        result, seconds = await asyncio.get_running_loop().run_in_executor(self.workers, timed)
        self.codec_seconds += seconds
        return result
