"""The committed state goes from peer to peer, and a donor that does wrong costs seconds and is passed over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
import torch

from peer.state.transfer import Offer, Values
from peer.values import Pending
from swarm.history import Certificate
from swarm.wire import StreamChannel
from tests.harness import RoundPeer, Swarm, swarm

PARAMETERS = 300_000  # more than one chunk
Evil = Callable[[StreamChannel, Pending, list[Certificate]], Awaitable[None]]


def _payload(values: torch.Tensor) -> bytes:
    return values.numpy().tobytes()


async def _offer(channel: StreamChannel, state: Pending, chain: list[Certificate], values: int = PARAMETERS) -> None:
    await channel.send(Offer(outer_step=state.outer_step, digest=state.digest, chain=chain, values=values))


async def wrong_bytes(channel: StreamChannel, state: Pending, chain: list[Certificate]) -> None:
    """One value is not the committed one."""
    await _offer(channel, state, chain)
    spoilt = state.parameters.clone()
    spoilt[-1] += 1
    for chunk in spoilt.split(1 << 18):
        await channel.send(Values(), _payload(chunk))


async def wrong_size(channel: StreamChannel, state: Pending, chain: list[Certificate]) -> None:
    """A state of another model."""
    await _offer(channel, state, chain, values=PARAMETERS + 1)


async def endless(channel: StreamChannel, state: Pending, chain: list[Certificate]) -> None:
    """Chunks of the wrong size, without end."""
    await _offer(channel, state, chain)
    while True:
        await channel.send(Values(), _payload(state.parameters[:1000]))


async def stalled(channel: StreamChannel, state: Pending, chain: list[Certificate]) -> None:
    """Nothing after the offer."""
    await _offer(channel, state, chain)
    await channel.receive(Values, timeout=60)


async def no_quorum(channel: StreamChannel, state: Pending, chain: list[Certificate]) -> None:
    """The newest link has one vote of four."""
    certificate = chain[-1]
    lonely = Certificate(link=certificate.link, ballot=certificate.ballot, votes=certificate.votes[:1])
    await _offer(channel, state, [*chain[:-1], lonely])


async def broken_chain(channel: StreamChannel, state: Pending, chain: list[Certificate]) -> None:
    """A link in the middle is missing."""
    await _offer(channel, state, [chain[0], chain[-1]])


async def other_run(channel: StreamChannel, state: Pending, chain: list[Certificate]) -> None:
    """Links of another run."""
    link = chain[-1].link.model_copy(update={"run_id": "other@0"})
    await _offer(channel, state, [Certificate(link=link, ballot=chain[-1].ballot, votes=chain[-1].votes)])


EVIL: dict[str, tuple[Evil, str]] = {
    "wrong-bytes": (wrong_bytes, "digest"),
    "wrong-size": (wrong_size, "shape"),
    "endless": (endless, "shape"),
    "stalled": (stalled, "deadline"),
    "no-quorum": (no_quorum, "history"),
    "broken-chain": (broken_chain, "history"),
    "other-run": (other_run, "history"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Swarm]:
    """Four peers after three outer steps."""
    async with swarm(tmp_path_factory.mktemp("transfer"), 4, parameters=PARAMETERS) as made:
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            await made.step({peer.peer_id: torch.randn(PARAMETERS, generator=generator) for peer in made.live})
        yield made


async def _newcomer(made: Swarm) -> RoundPeer:
    joiner = await made.add(chunk_seconds=1.0)
    for other in made.live:
        if other is not joiner:
            assert await joiner.network.dial(other.peer_id, other.network.maddrs)
    return joiner


@pytest.mark.asyncio(loop_scope="module")
async def test_a_newcomer_gets_the_committed_state(made: Swarm) -> None:
    joiner, donor = await _newcomer(made), made.live[0]
    found = await asyncio.wait_for(joiner.catch_up([donor.peer_id]), 20)
    assert found == donor.peer_id
    assert joiner.store.head == donor.store.head
    assert torch.equal(joiner.parameters, donor.parameters)
    assert joiner.transfers == [("download", "ok")]
    assert await joiner.catch_up([donor.peer_id]) is None  # nobody is heavier any more


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", EVIL)
async def test_a_donor_that_does_wrong_is_refused_and_the_next_one_asked(made: Swarm, name: str) -> None:
    evil, reason = EVIL[name]
    joiner, honest = await _newcomer(made), made.live[0]
    donor = await _newcomer(made)
    state, chain = honest.store.committed, honest.store.history.since(0)

    async def upload(channel: StreamChannel, *own: object) -> None:
        await evil(channel, state, chain)

    donor.transfer._upload = upload  # type: ignore[method-assign, assignment]  # its own hand on what it sends
    assert await joiner.network.dial(donor.peer_id, donor.network.maddrs)
    before = joiner.store.head
    assert await asyncio.wait_for(joiner.catch_up([donor.peer_id]), 20) is None
    assert joiner.store.head == before  # nothing of it was believed
    assert joiner.transfers == [("download", reason)]
    assert await asyncio.wait_for(joiner.catch_up([donor.peer_id, honest.peer_id]), 20) == honest.peer_id
    assert joiner.store.head == honest.store.head


@pytest.mark.asyncio(loop_scope="module")
async def test_before_the_first_link_the_lower_digest_is_everybodys(made: Swarm) -> None:
    one = await made.add(initial=torch.zeros(PARAMETERS))
    other = await made.add(initial=torch.ones(PARAMETERS))
    lower, higher = sorted((one, other), key=lambda peer: peer.store.head.digest)
    assert await lower.network.dial(higher.peer_id, higher.network.maddrs)
    assert await lower.catch_up([higher.peer_id]) is None
    assert await higher.catch_up([lower.peer_id]) == lower.peer_id
    assert higher.store.head == lower.store.head
