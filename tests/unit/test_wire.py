"""Frames over real socket pairs, and the headers in them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field

from swarm.network import Network, SilentObserver
from swarm.wire import (
    MAX_HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    Message,
    Pulse,
    StreamChannel,
    WireError,
    encode,
    no_traffic,
    parse,
)
from tests.chain import PEERS

SOON = 10.0


class Greeting(Message):
    """A message with a field of every type that travels."""

    text: str = ""
    number: int = 0
    ratio: float = 0.0
    blob: bytes = b""
    flag: bool = False
    names: list[str] = Field(default_factory=list)
    table: dict[str, int] = Field(default_factory=dict)
    inner: Greeting | None = None


class Farewell(Message):
    """Another kind."""


class Greetings(Message):
    """The same fields do not make the same kind."""

    text: str = ""


flat = st.builds(
    Greeting,
    text=st.text(max_size=50),
    number=st.integers(-(2**63), 2**64 - 1),
    ratio=st.floats(allow_nan=False),
    blob=st.binary(max_size=50),
    flag=st.booleans(),
    names=st.lists(st.text(max_size=5), max_size=3),
    table=st.dictionaries(st.text(max_size=5), st.integers(0, 2**53), max_size=3),
)
greetings = st.builds(lambda one, inner: one.model_copy(update={"inner": inner}), flat, st.none() | flat)


@contextlib.asynccontextmanager
async def connected(traffic: Any = no_traffic) -> AsyncIterator[tuple[StreamChannel, StreamChannel]]:
    """Two channels at the ends of one socket pair."""
    async with streams() as ((reader, writer), (other_reader, other_writer)):
        yield (
            StreamChannel(PEERS[1], reader, writer, traffic),
            StreamChannel(PEERS[0], other_reader, other_writer, traffic),
        )


@contextlib.asynccontextmanager
async def streams() -> AsyncIterator[list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]:
    """The ends of one socket pair."""
    pairs = [await asyncio.open_unix_connection(sock=end) for end in socket.socketpair()]
    try:
        yield pairs
    finally:
        for _, writer in pairs:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def framed(header: bytes, payload: bytes = b"") -> bytes:
    return struct.pack(">II", len(header), len(payload)) + header + payload


def header_of(message: Message) -> bytes:
    return bytes(encode(message)[0])[8:]


# -- frames over a stream ------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(greetings, st.binary(max_size=3000)), max_size=8))
async def test_messages_arrive_as_they_were_sent(frames: list[tuple[Greeting, bytes]]) -> None:
    async with connected() as (one, other):
        for message, payload in frames:
            await one.send(message, payload)
        for frame in frames:
            assert await other.receive(Greeting, timeout=SOON) == frame


async def test_both_directions_at_once_count_their_bytes() -> None:
    counts = {"sent": 0, "received": 0}

    def traffic(direction: str, count: int) -> None:
        counts[direction] += count

    frames = [(Greeting(number=number), bytes([number]) * 100_000 * (number % 3)) for number in range(12)]
    async with connected(traffic) as ends:

        async def send(end: StreamChannel) -> None:
            for message, payload in frames:
                await end.send(message, payload)

        async def hear(end: StreamChannel) -> list[tuple[Greeting, bytes]]:
            return [await end.receive(Greeting, timeout=SOON) for _ in frames]

        *_, heard, also_heard = await asyncio.gather(*map(send, ends), *map(hear, ends))
        assert heard == also_heard == frames
    whole = sum(len(buffer) for message, payload in frames for buffer in encode(message, payload))
    assert counts == {"sent": 2 * whole, "received": 2 * whole}


async def test_senders_at_once_do_not_cut_into_each_other() -> None:
    frames = [(Greeting(number=number), bytes([number]) * 200_000) for number in range(20)]
    async with connected() as (one, other):
        sending = asyncio.gather(*(one.send(message, payload) for message, payload in frames))
        heard = [await other.receive(Greeting, timeout=SOON) for _ in frames]
        await sending
    assert sorted(heard, key=lambda frame: frame[0].number) == frames


async def test_the_largest_frame_passes_and_a_larger_one_is_not_sent() -> None:
    largest = memoryview(bytes(MAX_PAYLOAD_BYTES))
    async with connected() as (one, other):
        sending = asyncio.ensure_future(one.send(Farewell(), largest))
        assert await other.receive(Farewell, timeout=SOON) == (Farewell(), bytes(largest))
        await sending
        for message, payload in (
            (Farewell(), bytes(MAX_PAYLOAD_BYTES + 1)),
            (Greeting(blob=bytes(MAX_HEADER_BYTES)), b""),
        ):
            with pytest.raises(ValueError, match="too large"):
                await one.send(message, payload)
        await one.send(Greeting(text="the stream is as it was"))
        assert (await other.receive(Greeting, timeout=SOON))[0].text == "the stream is as it was"


@pytest.mark.parametrize(
    "lengths", [(MAX_HEADER_BYTES + 1, 0), (2**32 - 1, 0), (10, MAX_PAYLOAD_BYTES + 1), (0, 2**32 - 1)]
)
async def test_a_frame_too_large_is_refused_before_it_is_read(lengths: tuple[int, int]) -> None:
    async with streams() as ((reader, writer), (_, stranger)):
        channel = StreamChannel(PEERS[0], reader, writer)
        stranger.write(struct.pack(">II", *lengths))  # and nothing after it: waiting for it would be the deadline
        with pytest.raises(WireError, match="a frame of") as caught:
            await channel.receive(Greeting, timeout=SOON)
    assert caught.value.reason == "malformed"


SILENCE = 3.0


async def test_silence_is_none_where_anything_comes_from_the_same_peer() -> None:
    """A whole chunk may take longer than silence is borne: its first bytes count."""
    pulse = Pulse()
    async with streams() as ((reader, writer), (_, values)), streams() as ((other_reader, other_writer), (_, words)):
        bulk = StreamChannel(PEERS[0], reader, writer, pulse=pulse)
        quiet = StreamChannel(PEERS[0], other_reader, other_writer, pulse=pulse)
        chunk = asyncio.ensure_future(bulk.receive(Farewell, timeout=None))
        hearing = asyncio.ensure_future(quiet.hear(Greeting, silence=SILENCE))
        values.write(framed(header_of(Farewell()), bytes(1000))[:-900])
        for _ in range(30):
            values.write(bytes(10))
            await asyncio.wait({hearing}, timeout=SILENCE / 20)
            assert not hearing.done()
        words.write(framed(header_of(Greeting(text="late"))))
        assert (await asyncio.wait_for(hearing, SOON)).text == "late"
        with pytest.raises(WireError, match="no sign of life") as caught:
            await quiet.hear(Greeting, silence=SILENCE)
        assert caught.value.reason == "deadline"
        values.write(bytes(600))
        assert await asyncio.wait_for(chunk, SOON) == (Farewell(), bytes(1000))


async def test_all_streams_to_a_peer_share_its_pulse() -> None:
    identity, daemon = SimpleNamespace(peer_id=PEERS[0]), SimpleNamespace(died=asyncio.Event())
    network = Network(identity, daemon, None, SilentObserver())  # type: ignore[arg-type]  # streams need no more
    async with streams() as (ends, others), streams() as (third, _):
        one, two = network._channel(PEERS[1], "test", *ends), network._channel(PEERS[1], "test", *others)
        stranger = network._channel(PEERS[2], "test", *third)
        assert one._pulse is two._pulse is not stranger._pulse
        del one, two
        assert list(network._pulses) == [PEERS[2]], "kept while there is a stream"


async def test_a_payload_where_only_signs_of_life_are_due_is_refused() -> None:
    """Its end may never come, while every byte of it is one."""
    async with streams() as ((reader, writer), (_, stranger)):
        stranger.write(framed(header_of(Farewell()), bytes(10))[:-5])
        with pytest.raises(WireError, match="a frame of") as caught:
            await StreamChannel(PEERS[0], reader, writer).hear(Farewell, silence=SOON)
    assert caught.value.reason == "malformed"


async def test_what_comes_from_another_peer_is_no_sign_of_life() -> None:
    async with connected() as (one, other), connected() as (third, fourth):
        hearing = asyncio.ensure_future(other.hear(Greeting, silence=SILENCE))
        while not hearing.done():
            await third.send(Farewell())
            await fourth.receive(Farewell, timeout=SOON)
            await asyncio.wait({hearing}, timeout=SILENCE / 20)
        with pytest.raises(WireError, match="no sign of life"):
            await hearing
        with pytest.raises(WireError) as caught:
            one.close()
            await other.hear(Greeting, silence=SOON)
        assert caught.value.reason == "gone"


@given(st.data())
async def test_a_stream_that_ends_within_a_frame_is_gone(data: st.DataObject) -> None:
    frame = framed(header_of(Greeting(text="hello")), b"payload")
    kept = data.draw(st.integers(0, len(frame) - 1))
    async with streams() as ((reader, writer), (_, stranger)):
        stranger.write(frame[:kept])
        stranger.close()
        with pytest.raises(WireError) as caught:
            await StreamChannel(PEERS[0], reader, writer).receive(Greeting, timeout=SOON)
    assert caught.value.reason == "gone"


async def test_silence_is_a_deadline() -> None:
    async with connected() as (one, _):
        with pytest.raises(WireError) as caught:
            await one.receive(Greeting, timeout=0.01)
    assert caught.value.reason == "deadline"


async def test_sending_to_nobody_is_gone() -> None:
    async with connected() as (one, other):
        other.close()
        with pytest.raises(WireError) as caught:
            for _ in range(100):  # the first may still fit into the socket's buffer
                await one.send(Farewell(), bytes(1 << 20))
    assert caught.value.reason == "gone"
    one.close()
    one.close()


# -- headers -------------------------------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.binary(), inner, max_size=4),
    max_leaves=10,
)


@example(b"")
@example(b"\xc1")  # the byte that msgpack never uses: its error has no text
@example(b"\x91" * 1000 + b"\xc0")
@example(b"\x81\xa4kind\xa8Greeting\xc0")
@given(st.binary(max_size=200) | plain.map(msgpack.packb))
def test_any_header_is_a_message_or_malformed(header: bytes) -> None:
    try:
        assert isinstance(parse(header, (Greeting,)), Greeting)
    except WireError as error:
        assert error.reason == "malformed"


@given(greetings, st.data())
def test_a_damaged_header_is_a_message_or_malformed(message: Greeting, data: st.DataObject) -> None:
    header = bytearray(header_of(message))
    header[data.draw(st.integers(0, len(header) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        parse(bytes(header), (Greeting, Farewell))


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"kind": "Farewell"}, id="another-kind"),
        pytest.param({"kind": "Greetings", "text": "hello"}, id="a-kind-with-the-same-fields"),
        pytest.param({"kind": "Message"}, id="the-base"),
        pytest.param({"kind": 1}, id="a-kind-that-is-no-text"),
        pytest.param({"kind": ["Greeting"]}, id="a-kind-in-a-list"),
        pytest.param({"text": "hello"}, id="no-kind"),
        pytest.param({"kind": "Greeting", "more": 1}, id="an-unknown-field"),
        pytest.param({"kind": "Greeting", "model_config": {}}, id="a-name-of-pydantic"),
        pytest.param({"kind": "Greeting", "text": b"hello"}, id="bytes-for-text"),
        pytest.param({"kind": "Greeting", "blob": "hello"}, id="text-for-bytes"),
        pytest.param({"kind": "Greeting", "number": True}, id="true-for-a-number"),
        pytest.param({"kind": "Greeting", "number": "1"}, id="text-for-a-number"),
        pytest.param({"kind": "Greeting", "number": 1.0}, id="a-float-for-an-int"),
        pytest.param({"kind": "Greeting", "flag": 1}, id="one-for-true"),
        pytest.param({"kind": "Greeting", "names": "abc"}, id="text-for-a-list"),
        pytest.param({"kind": "Greeting", "table": {"a": "1"}}, id="text-for-a-number-inside"),
        pytest.param({"kind": "Greeting", "table": [["a", 1]]}, id="pairs-for-a-table"),
        pytest.param({"kind": "Greeting", "inner": {"more": 1}}, id="an-unknown-field-inside"),
        pytest.param({b"kind": "Greeting"}, id="bytes-for-a-key"),
        pytest.param([["kind", "Greeting"]], id="a-list"),
        pytest.param("Greeting", id="text"),
        pytest.param(7, id="a-number"),
        pytest.param(None, id="nothing"),
    ],
)
async def test_what_was_not_agreed_is_malformed(fields: object) -> None:
    async with streams() as ((reader, writer), (_, stranger)):
        channel = StreamChannel(PEERS[0], reader, writer)
        stranger.write(framed(msgpack.packb(fields), b"payload") + framed(header_of(Greeting(text="good"))))
        with pytest.raises(WireError) as caught:
            await channel.receive(Greeting, timeout=SOON)
        assert caught.value.reason == "malformed"
        assert "\n" not in str(caught.value)
        assert (await channel.receive(Greeting, timeout=SOON))[0].text == "good", "the frame was read whole"


@given(greetings)
def test_encoding_is_what_parsing_reads(message: Greeting) -> None:
    assert parse(header_of(message), (Farewell, Greeting)) == message
