"""Bounded, typed messages over a libp2p stream.

A frame is two big-endian lengths, a msgpack header and a raw payload. Both lengths are checked *before* anything is
read, so that a stranger cannot make us hold what we did not ask for. p2pd knows no half-closed streams: who is done
says so in a message, and only then closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import msgpack
from pydantic import BaseModel, ConfigDict, ValidationError

from swarm.deadline import within
from swarm.identity import PeerId

MAX_HEADER_BYTES = 1 << 20
MAX_PAYLOAD_BYTES = 4 << 20
_LENGTHS = struct.Struct(">II")
_LONGEST_READ = 1 << 16

Traffic = Callable[[str, int], None]
"""Called with "sent" or "received" and a number of bytes."""


class WireError(Exception):
    """The stream broke or its bytes are not what was agreed. ``reason`` is one word for the metrics."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class Message(BaseModel):
    """A typed header. Subclasses set ``kind``; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


M = TypeVar("M", bound=Message)


def no_traffic(direction: str, count: int) -> None:
    """Counts nothing."""


class Channel(Protocol):
    """Two ends that exchange messages, over libp2p or inside one process."""

    remote: PeerId

    async def send(self, message: Message, payload: bytes | memoryview = b"") -> None:
        """Raises WireError("gone") when the other end is away."""
        ...

    async def receive(self, *kinds: type[M], timeout: float | None) -> tuple[M, bytes]:
        """The next message, which must be one of ``kinds``. Raises WireError: gone, deadline, malformed."""
        ...

    async def hear(self, *kinds: type[M], silence: float) -> M:
        """The next message, which has no payload, for as long as the other end shows any life.

        Raises WireError: deadline after ``silence`` seconds in which nothing came, else as ``receive``.
        """
        ...

    def close(self) -> None:
        """Ends both directions. What was sent last may be lost: whoever answers lets the other end close first."""
        ...


def encode(message: Message, payload: bytes | memoryview = b"") -> list[bytes | memoryview]:
    """The frame as buffers to write, uncopied."""
    header = msgpack.packb({"kind": type(message).__name__, **message.model_dump()})
    if len(header) > MAX_HEADER_BYTES or len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"{type(message).__name__} is too large: {len(header)} + {len(payload)} bytes")
    return [_LENGTHS.pack(len(header), len(payload)) + header, payload]


def parse(header: bytes, kinds: tuple[type[M], ...]) -> M:
    """The message in ``header``. Raises WireError("malformed")."""
    try:
        fields = msgpack.unpackb(header, use_list=True, strict_map_key=True)
        kind = fields.pop("kind")
        for candidate in kinds:
            if candidate.__name__ == kind:
                return candidate.model_validate(fields)
        raise WireError("malformed", f"unexpected {str(kind)[:40]!r}")
    except (
        ValidationError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        msgpack.UnpackException,
    ) as error:
        raise WireError("malformed", (str(error) or repr(error)).splitlines()[0][:200]) from error


class Pulse:
    """When something last came from a peer, over whichever stream: seconds of the monotonic clock.

    All streams to a peer share one connection. A short message may wait for many seconds behind the values of another
    stream, on a slow link; that those arrive is a sign of life as well.
    """

    def __init__(self) -> None:
        self.at = time.monotonic()

    def beat(self) -> None:
        """Something came."""
        self.at = time.monotonic()


class StreamChannel:
    """A channel over one libp2p stream. pulse: of the other end, shared by all channels to it."""

    def __init__(
        self,
        remote: PeerId,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        traffic: Traffic = no_traffic,
        pulse: Pulse | None = None,
    ):
        self.remote = remote
        self._reader, self._writer, self._traffic = reader, writer, traffic
        self._pulse = pulse or Pulse()
        self._lock = asyncio.Lock()

    async def send(self, message: Message, payload: bytes | memoryview = b"") -> None:
        """See Channel."""
        buffers = encode(message, payload)
        async with self._lock:
            try:
                for buffer in buffers:
                    if len(buffer):
                        self._writer.write(buffer)
                await self._writer.drain()
            except (OSError, RuntimeError) as error:
                raise WireError("gone", repr(error)) from error
        self._traffic("sent", sum(map(len, buffers)))

    async def receive(self, *kinds: type[M], timeout: float | None) -> tuple[M, bytes]:
        """See Channel."""
        try:
            header, payload = await within(self._frame(), timeout)
        except asyncio.TimeoutError:
            raise WireError("deadline", f"nothing within {timeout:.1f} s") from None
        return parse(header, kinds), payload

    async def hear(self, *kinds: type[M], silence: float) -> M:
        """See Channel. Whatever comes from the other end counts, on other streams too."""
        began = time.monotonic()
        frame = asyncio.ensure_future(self._frame(most_payload_bytes=0))  # a frame without end would hold memory
        try:
            while not frame.done():
                left = max(began, self._pulse.at) + silence - time.monotonic()
                if left <= 0:
                    raise WireError("deadline", f"no sign of life for {silence:.1f} s")
                await asyncio.wait({frame}, timeout=left)
        finally:
            frame.cancel()
            await asyncio.gather(frame, return_exceptions=True)
        return parse(frame.result()[0], kinds)

    async def _frame(self, most_payload_bytes: int = MAX_PAYLOAD_BYTES) -> tuple[bytes, bytes]:
        header_bytes, payload_bytes = _LENGTHS.unpack(await self._read(_LENGTHS.size, between_frames=True))
        if header_bytes > MAX_HEADER_BYTES or payload_bytes > most_payload_bytes:
            raise WireError("malformed", f"a frame of {header_bytes} + {payload_bytes} bytes")
        header = await self._read(header_bytes)
        payload = await self._read(payload_bytes) if payload_bytes else b""
        self._traffic("received", _LENGTHS.size + header_bytes + payload_bytes)
        return header, payload

    async def _read(self, count: int, *, between_frames: bool = False) -> bytes:
        """As ``readexactly``, with a pulse for every piece: a whole chunk takes long where a link is slow."""
        found = bytearray()
        while len(found) < count:
            try:
                piece = await self._reader.read(count - len(found))
            except OSError as error:
                raise WireError("gone", repr(error)) from error
            if not piece:
                hung_up = between_frames and not found
                raise WireError("gone", "hung up" if hung_up else f"after {len(found)} of {count} bytes")
            self._pulse.beat()
            if len(piece) == count:
                return piece
            found += piece
        return bytes(found)

    async def linger(self, timeout: float) -> None:
        """Waits until the other end hangs up, which it does when it has read all: at most ``timeout`` seconds.

        p2pd ends a stream by a reset, and over QUIC that discards what is still on its way: of a last message and a
        close right after it, three in four never arrived. Whatever else comes in is dropped.
        """
        with contextlib.suppress(asyncio.TimeoutError, OSError):
            await within(self._until_the_end(), timeout)

    async def _until_the_end(self) -> None:
        while await self._reader.read(_LONGEST_READ):
            pass

    def close(self) -> None:
        """See Channel."""
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.close()


class LocalChannel:
    """One end of a channel inside this process: a peer is its own leader and its own reducer too."""

    def __init__(self, remote: PeerId, inbox: asyncio.Queue[Any], outbox: asyncio.Queue[Any]):
        self.remote = remote
        self._inbox, self._outbox = inbox, outbox
        self._ended = False

    @classmethod
    def pair(cls, peer: PeerId) -> tuple[LocalChannel, LocalChannel]:
        """Two connected ends."""
        one: asyncio.Queue[Any] = asyncio.Queue()
        two: asyncio.Queue[Any] = asyncio.Queue()
        a, b = cls(peer, one, two), cls(peer, two, one)
        a._other, b._other = b, a
        return a, b

    _other: LocalChannel

    async def send(self, message: Message, payload: bytes | memoryview = b"") -> None:
        """See Channel."""
        if self._ended or self._other._ended:
            raise WireError("gone", "closed")
        await self._outbox.put((message, bytes(payload)))

    async def receive(self, *kinds: type[M], timeout: float | None) -> tuple[M, bytes]:
        """See Channel."""
        if self._inbox.empty() and (self._ended or self._other._ended):
            raise WireError("gone", "closed")
        try:
            item = await within(self._inbox.get(), timeout)
        except asyncio.TimeoutError:
            raise WireError("deadline", f"nothing within {timeout:.1f} s") from None
        if item is None:
            raise WireError("gone", "closed")
        message, payload = item
        if not isinstance(message, kinds):
            raise WireError("malformed", f"unexpected {type(message).__name__}")
        return message, payload

    async def hear(self, *kinds: type[M], silence: float) -> M:
        """See Channel."""
        return (await self.receive(*kinds, timeout=silence))[0]

    def close(self) -> None:
        """See Channel."""
        self._ended = True
        for queue in (self._outbox, self._inbox):  # wake whoever waits at either end
            queue.put_nowait(None)
