"""Where the tensor work of rounds is done."""

from __future__ import annotations

import asyncio
import threading
import time

import torch

from peer.rounds.workshop import Workshop, workers


async def test_no_more_is_done_at_once_than_torch_has_threads_for() -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1

    threads = torch.get_num_threads()
    workshop = Workshop(workers())
    await asyncio.gather(*(workshop.work(work) for _ in range(10 * threads)))
    assert most == threads
    assert workshop.codec_seconds >= 10 * threads * 0.005, "of all threads together"


async def test_work_of_one_peer_that_waits_does_not_hold_up_anothers() -> None:
    ours, theirs, go = Workshop(workers()), Workshop(workers()), threading.Event()
    waiting = [asyncio.ensure_future(ours.work(lambda: go.wait(30.0))) for _ in range(2 * torch.get_num_threads())]
    try:
        assert await asyncio.wait_for(theirs.work(lambda: 7), 10.0) == 7
        assert not any(one.done() for one in waiting)
    finally:
        go.set()
        assert all(await asyncio.gather(*waiting))
