"""Where the tensor work of rounds is done."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch

from peer.rounds.workshop import Workshop, workers

THREADS = 3


async def test_as_much_is_done_at_once_as_torch_has_threads_for_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: THREADS)
    together, lock, running, most = threading.Barrier(THREADS), threading.Lock(), 0, 0

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(10.0)  # nobody comes past it before so many are here
        with lock:
            running -= 1

    workshop = Workshop(workers())
    await asyncio.gather(*(workshop.work(work) for _ in range(4 * THREADS)))
    assert most == THREADS
    assert workshop.codec_seconds > 0


async def test_work_of_one_peer_that_waits_does_not_hold_up_anothers() -> None:
    ours, theirs, go = Workshop(workers()), Workshop(workers()), threading.Event()
    waiting = [asyncio.ensure_future(ours.work(lambda: go.wait(30.0))) for _ in range(2 * torch.get_num_threads())]
    try:
        assert await asyncio.wait_for(theirs.work(lambda: 7), 10.0) == 7
        assert not any(one.done() for one in waiting)
    finally:
        go.set()
        assert all(await asyncio.gather(*waiting))
