"""Reading ahead: in a thread of its own, as far as its depth, and gone when closed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import islice

import pytest
import torch

from peer.data import Prefetcher, open_stream
from peer.values import Batch, Cursor
from swarm.errors import DataError
from tests.unit.test_data_sources import a_manifest

SECONDS = 10.0  # a bound on waiting for another thread, not a measure


class Steps:
    """A stream of numbered batches that tells and can be held: events instead of sleeps."""

    def __init__(self, fail_at: int = -1, end_at: int = -1) -> None:
        self.fail_at, self.end_at = fail_at, end_at
        self.made = 0
        self.held = threading.Event()
        self.held.set()
        self.closed_in: list[str] = []
        self._made_one = threading.Condition()

    def __next__(self) -> Batch:
        assert self.held.wait(SECONDS)
        if self.made == self.fail_at:
            raise DataError("rows.jsonl:3: not a line of JSON")
        if self.made == self.end_at:
            raise StopIteration
        batch = Batch(torch.full((1, 2), self.made), Cursor(0, self.made + 1))
        with self._made_one:
            self.made += 1
            self._made_one.notify_all()
        return batch

    def close(self) -> None:
        self.closed_in.append(threading.current_thread().name)

    def wait_made(self, count: int) -> None:
        with self._made_one:
            assert self._made_one.wait_for(lambda: self.made >= count, SECONDS)


def data_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "waggle-data"]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert data_threads() == []


def test_batches_come_in_order_and_equal_those_of_the_stream() -> None:
    manifest = a_manifest()
    with Prefetcher(open_stream(manifest, "peer"), depth=3) as batches:
        ahead = list(islice(batches, 40))
    for one, other in zip(ahead, open_stream(manifest, "peer"), strict=False):
        assert one.cursor == other.cursor and torch.equal(one.tokens, other.tokens)


def test_it_reads_as_far_ahead_as_its_depth_and_no_further() -> None:
    steps = Steps()
    with Prefetcher(steps, depth=4) as batches:
        steps.wait_made(4)
        assert next(batches).cursor.block == 1
        steps.wait_made(5)
    assert steps.made == 5


def test_training_does_not_wait_while_batches_are_ready() -> None:
    steps = Steps()
    with Prefetcher(steps, depth=4) as batches:
        next(batches)  # the first may have to be waited for
        waits, wait_seconds = batches.waits, batches.wait_seconds
        steps.wait_made(5)  # four are made behind the first: at least three of them are in the queue
        steps.held.clear()
        for _ in range(3):
            next(batches)
        assert (batches.waits, batches.wait_seconds) == (waits, wait_seconds)
        steps.held.set()


def test_waiting_is_counted_and_has_a_deadline() -> None:
    steps = Steps()
    steps.held.clear()
    with Prefetcher(steps) as batches:
        with pytest.raises(TimeoutError, match=r"^no batch within 0\.01 seconds$"):
            batches.take(timeout_seconds=0.01)
        assert batches.waits == 1 and batches.wait_seconds >= 0.009 and batches.ready == 0
        steps.held.set()
        assert batches.take(timeout_seconds=SECONDS).cursor.block == 1


def test_the_streams_error_reaches_the_taker_as_it_is_behind_the_batches_before_it() -> None:
    with Prefetcher(Steps(fail_at=2)) as batches:
        assert [next(batches).cursor.block for _ in range(2)] == [1, 2]
        for _ in range(2):
            with pytest.raises(DataError, match=r"^rows\.jsonl:3: not a line of JSON$"):
                next(batches)


def test_a_stream_that_ends_ends_it() -> None:
    with Prefetcher(Steps(end_at=3), depth=2) as batches:
        assert len(list(batches)) == 3


def test_close_stops_a_full_queue_and_closes_the_stream_in_its_thread() -> None:
    steps = Steps()
    batches = Prefetcher(steps, depth=2)
    steps.wait_made(2)
    (thread,) = data_threads()
    batches.close()
    assert not thread.is_alive() and steps.closed_in == ["waggle-data"]
    batches.close()  # twice does no harm
    assert list(batches) == []


def test_close_wakes_a_taker() -> None:
    steps = Steps()
    steps.held.clear()
    batches = Prefetcher(steps)
    taken: list[list[Batch]] = []
    taker = threading.Thread(target=lambda: taken.append(list(batches)))
    taker.start()
    batches.close(timeout_seconds=0)  # the stream is stuck, as in a slow network: not waited for
    taker.join(SECONDS)
    assert taken == [[]]
    (stuck,) = data_threads()
    steps.held.set()
    stuck.join(SECONDS)
    assert steps.closed_in == ["waggle-data"]
