"""Channels between two ends in one process behave as those over a stream."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.wire import LocalChannel, WireError
from tests.chain import PEERS
from tests.unit.test_wire import SOON, Farewell, Greeting, greetings


@given(st.lists(st.tuples(greetings, st.binary(max_size=20)), max_size=8))
async def test_what_was_sent_before_a_local_close_is_delivered(frames: list[tuple[Greeting, bytes]]) -> None:
    one, other = LocalChannel.pair(PEERS[0])
    for message, payload in frames:
        await one.send(message, memoryview(payload))
    one.close()
    for frame in frames:
        assert await other.receive(Greeting, timeout=SOON) == frame
    for _ in range(2):  # and it stays so
        with pytest.raises(WireError) as caught:
            await other.receive(Greeting, timeout=None)
        assert caught.value.reason == "gone"


@pytest.mark.parametrize("closer", [0, 1])
async def test_a_local_close_wakes_the_receivers_at_both_ends(closer: int) -> None:
    ends = LocalChannel.pair(PEERS[0])
    waiting = [asyncio.ensure_future(end.receive(Greeting, timeout=None)) for end in ends]
    await asyncio.wait(waiting, timeout=0.01)
    assert not any(one.done() for one in waiting)
    ends[closer].close()
    ends[closer].close()
    errors = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), SOON)
    assert [isinstance(error, WireError) and error.reason for error in errors] == ["gone", "gone"]


@pytest.mark.parametrize("closer", [0, 1])
async def test_nothing_is_sent_after_a_local_close(closer: int) -> None:
    ends = LocalChannel.pair(PEERS[0])
    ends[closer].close()
    for end in ends:
        with pytest.raises(WireError) as caught:
            await end.send(Farewell())
        assert caught.value.reason == "gone"


async def test_a_local_channel_takes_the_kinds_it_is_asked_for_only() -> None:
    one, other = LocalChannel.pair(PEERS[3])
    assert one.remote == other.remote == PEERS[3]
    await one.send(Farewell())
    with pytest.raises(WireError) as caught:
        await other.receive(Greeting, timeout=SOON)
    assert caught.value.reason == "malformed"
    with pytest.raises(WireError) as caught:
        await other.receive(Greeting, timeout=0.01)
    assert caught.value.reason == "deadline"
    payload = bytearray(b"abc")
    await one.send(Farewell(), memoryview(payload))
    payload[:] = b"xyz"  # a payload is the receiver's own
    assert await other.receive(Greeting, Farewell, timeout=SOON) == (Farewell(), b"abc")
