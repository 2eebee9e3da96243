"""Donors that do wrong: each gets a stream, an honest state and the links to it, and makes something of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from peer.layout import chunk_bytes, chunk_slices
from peer.state.donor import Pace
from peer.state.messages import Ask, Offer, Thanks, Values, Want
from peer.values import Pending
from swarm.history import Certificate
from swarm.wire import Message, StreamChannel, WireError
from tests.harness import RoundPeer

Evil = Callable[[StreamChannel, Pending, list[Certificate]], Awaitable[None]]


def chunk(state: Pending, index: int) -> bytes:
    """A chunk of the parameters as it travels."""
    return bytes(chunk_bytes(state.parameters[chunk_slices(state.parameters.numel())[index]]))


async def offer(channel: StreamChannel, state: Pending, chain: list[Certificate], hashes: bytes | None = None) -> None:
    """Offers the state, or other hashes than its own."""
    payload = state.hashes if hashes is None else hashes
    await channel.send(Offer(outer_step=state.outer_step, digest=state.digest, chain=chain), payload)


async def wanted(channel: StreamChannel) -> int:
    """The next chunk that is wanted. Raises WireError when the receiver has enough of us."""
    message, _ = await channel.receive(Want, Thanks, timeout=60)
    if not isinstance(message, Want):
        raise WireError("gone")
    return message.index


async def wrong_bytes(channel: StreamChannel, state: Pending, chain: list[Certificate]) -> None:
    """One value is not the committed one."""
    await offer(channel, state, chain)
    spoilt = bytearray(chunk(state, index := await wanted(channel)))
    spoilt[-1] ^= 1
    await channel.send(Values(index=index), bytes(spoilt))


async def wrong_hashes(channel: StreamChannel, state: Pending, chain: list[Certificate]) -> None:
    """Hashes of something else."""
    await offer(channel, state, chain, bytes(len(state.hashes)))


async def wrong_size(channel: StreamChannel, state: Pending, chain: list[Certificate]) -> None:
    """A state of another model."""
    await offer(channel, state, chain, state.hashes + bytes(32))


async def short_chunk(channel: StreamChannel, state: Pending, chain: list[Certificate]) -> None:
    """Less than was wanted."""
    await offer(channel, state, chain)
    await channel.send(Values(index=(index := await wanted(channel))), chunk(state, index)[:1000])


async def other_chunk(channel: StreamChannel, state: Pending, chain: list[Certificate]) -> None:
    """A right chunk in the place of another."""
    await offer(channel, state, chain)
    index = await wanted(channel)
    await channel.send(Values(index=index + 1), chunk(state, index + 1))


async def endless(channel: StreamChannel, state: Pending, chain: list[Certificate]) -> None:
    """Chunks that nobody wants, without end."""
    await offer(channel, state, chain)
    while True:
        await channel.send(Values(index=5), chunk(state, 5))


async def hung_up(channel: StreamChannel, state: Pending, chain: list[Certificate]) -> None:
    """Two chunks, and away."""
    await offer(channel, state, chain)
    for _ in range(2):
        await channel.send(Values(index=(index := await wanted(channel))), chunk(state, index))
    channel.close()


async def stalled(channel: StreamChannel, state: Pending, chain: list[Certificate]) -> None:
    """Nothing after the offer."""
    await offer(channel, state, chain)
    while True:
        await wanted(channel)


async def mute(channel: StreamChannel, state: Pending, chain: list[Certificate]) -> None:
    """Nothing at all, though it takes the question."""
    await wanted(channel)


async def no_quorum(channel: StreamChannel, state: Pending, chain: list[Certificate]) -> None:
    """The newest link has one vote of four."""
    certificate = chain[-1]
    lonely = Certificate(link=certificate.link, ballot=certificate.ballot, votes=certificate.votes[:1])
    await offer(channel, state, [*chain[:-1], lonely])


async def broken_chain(channel: StreamChannel, state: Pending, chain: list[Certificate]) -> None:
    """A link in the middle is missing."""
    await offer(channel, state, [chain[0], chain[-1]])


async def other_run(channel: StreamChannel, state: Pending, chain: list[Certificate]) -> None:
    """Links of another run."""
    link = chain[-1].link.model_copy(update={"run_id": "other@0"})
    await offer(channel, state, [Certificate(link=link, ballot=chain[-1].ballot, votes=chain[-1].votes)])


EVIL: dict[str, tuple[Evil, str]] = {
    "wrong-bytes": (wrong_bytes, "digest"),
    "wrong-hashes": (wrong_hashes, "digest"),
    "wrong-size": (wrong_size, "shape"),
    "short-chunk": (short_chunk, "shape"),
    "other-chunk": (other_chunk, "malformed"),
    "endless": (endless, "malformed"),
    "hung-up": (hung_up, "gone"),
    "stalled": (stalled, "deadline"),
    "mute": (mute, "deadline"),
    "no-quorum": (no_quorum, "history"),
    "broken-chain": (broken_chain, "history"),
    "other-run": (other_run, "history"),
}


class PacedChannel:
    """A stream of a donor whose uplink is as slow for lies as for the truth."""

    def __init__(self, channel: StreamChannel, pace: Pace):
        self._channel, self._pace = channel, pace

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    async def send(self, message: Message, payload: bytes = b"") -> None:
        """See Channel."""
        await self._pace.take(len(payload))
        await self._channel.send(message, payload)


def corrupt(donor: RoundPeer, evil: Evil, state: Pending, chain: list[Certificate]) -> None:
    """From now on ``donor`` does wrong, whatever it is asked."""
    pace = donor.transfer.donor._pace

    async def converse(channel: StreamChannel, ask: Ask) -> bool:
        await evil(PacedChannel(channel, pace), state, chain)  # type: ignore[arg-type]
        return True

    donor.transfer.donor._converse = converse  # type: ignore[method-assign]  # its own hand on what it sends


def mend(donor: RoundPeer) -> None:
    """From now on it is honest again."""
    del donor.transfer.donor._converse  # the method of its class again
