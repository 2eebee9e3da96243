"""Peers that do wrong, built from the real parts: codecs that lie, streams that are tampered with, cut or garbage."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

import torch

from peer.rounds.codec import Codec, CodecError, Float32Codec
from swarm.identity import PeerId
from swarm.network import Handler, Network
from swarm.wire import Channel, Message, StreamChannel, WireError

M = Any


def no_check(values: torch.Tensor) -> str:
    """A gate that lets everything out: for ``Context(check=no_check)``."""
    return ""


class EvilCodec(Float32Codec):
    """Encodes through ``spoil``, which gets the values and the honest bytes, and takes no offence at what it gets."""

    def __init__(self, spoil: Callable[[torch.Tensor, bytes], bytes], base: Codec | None = None):
        self._spoil, self._base = spoil, base or Float32Codec()

    def encode(self, values: torch.Tensor) -> bytes:
        return self._spoil(values, self._base.encode(values))

    def decode(self, payload: bytes, count: int) -> torch.Tensor:
        try:
            return self._base.decode(payload, count)
        except CodecError:
            return torch.zeros(count)


class SlowCodec(Float32Codec):
    """Encodes only after ``go`` is set: a sender whose uplink or processor is too slow."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def encode(self, values: torch.Tensor) -> bytes:
        self.go.wait(30.0)
        return super().encode(values)


Tamper = Callable[[PeerId, Message, bytes], "tuple[Message, bytes] | bytes"]
"""Gets the remote peer, a message and its payload; returns what to send instead, or raw bytes for the stream."""


class TamperedChannel:
    """A channel on which messages are changed before they are sent."""

    def __init__(self, channel: StreamChannel, tamper: Tamper):
        self.remote = channel.remote
        self._channel, self._tamper = channel, tamper

    async def send(self, message: Message, payload: bytes | memoryview = b"") -> None:
        changed = self._tamper(self.remote, message, bytes(payload))
        if isinstance(changed, bytes):
            self._channel._writer.write(changed)
            await self._channel._writer.drain()
        else:
            await self._channel.send(*changed)

    async def receive(self, *kinds: type[M], timeout: float | None) -> tuple[M, bytes]:
        return await self._channel.receive(*kinds, timeout=timeout)

    async def hear(self, *kinds: type[M], silence: float) -> M:
        return await self._channel.hear(*kinds, silence=silence)

    async def linger(self, timeout: float) -> None:
        await self._channel.linger(timeout)

    def close(self) -> None:
        self._channel.close()


def honest(peer: PeerId, message: Message, payload: bytes) -> tuple[Message, bytes]:
    """Changes nothing."""
    return message, payload


class Tap:
    """The real network with a hand on its streams.

    cut: peers that cannot be reached and do not reach us. tamper: changes what is sent.
    """

    def __init__(self, network: Network, cut: set[PeerId] | None = None, tamper: Tamper = honest):
        self._network = network
        self.cut = set() if cut is None else cut
        self.tamper = tamper

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def _tampered(self, peer: PeerId, message: Message, payload: bytes) -> tuple[Message, bytes] | bytes:
        return self.tamper(peer, message, payload)

    async def dial(self, peer_id: PeerId, *arguments: Any) -> bool:
        return peer_id not in self.cut and await self._network.dial(peer_id, *arguments)

    async def open(self, peer_id: PeerId, *arguments: Any) -> Channel:
        if peer_id in self.cut:
            raise WireError("unreachable", "cut")
        return TamperedChannel(await self._network.open(peer_id, *arguments), self._tampered)

    async def serve(self, protocol: str, purpose: str, handler: Handler) -> None:
        async def handle(channel: StreamChannel) -> None:
            if channel.remote not in self.cut:
                await handler(TamperedChannel(channel, self._tampered))  # type: ignore[arg-type]

        await self._network.serve(protocol, purpose, handle)


async def shout(network: Network, peer: PeerId, protocol: str, garbage: bytes) -> bytes:
    """Writes raw bytes to a stream; returns what comes back until the other side hangs up, 5 seconds at most."""
    channel = await network.open(peer, protocol, "test", 5.0)
    answer = b""
    with contextlib.suppress(asyncio.TimeoutError, OSError):
        channel._writer.write(garbage)
        await channel._writer.drain()
        answer = await asyncio.wait_for(channel._reader.read(-1), 5.0)
    channel.close()
    return answer
