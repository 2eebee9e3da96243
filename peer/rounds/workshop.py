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


def workers() -> Executor:
    """Threads for the tensor work of one peer, as many as torch takes for its own.

    More, as asyncio's own executor has, would keep each other and the event loop from the cores: a peer whose loop is
    late is taken for one that is gone. And each peer has its own, or one whose work waits would hold up another's.
    """
    return ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="tensors")


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
