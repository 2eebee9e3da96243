"""The committed state goes from peers to peer; a donor that does wrong costs seconds and is passed over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
import pytest_asyncio
import torch
from structlog.testing import capture_logs

from peer.layout import chunk_slices, named_state
from peer.state.messages import Ask, Offer, Thanks, Unavailable, Values, Want
from peer.values import Pending
from swarm.history import Certificate
from swarm.wire import StreamChannel
from tests.donors import EVIL, chunk, corrupt, offer, wanted
from tests.harness import RoundPeer, Swarm, swarm

PARAMETERS = 1_500_000  # six chunks


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Swarm]:
    """Four peers after three outer steps."""
    async with swarm(tmp_path_factory.mktemp("transfer"), 4, parameters=PARAMETERS) as made:
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            await made.step({peer.peer_id: torch.randn(PARAMETERS, generator=generator) for peer in made.live})
        yield made


async def _newcomer(made: Swarm, chunk_seconds: float = 1.0, **options: object) -> RoundPeer:
    joiner = await made.add(chunk_seconds=chunk_seconds, **options)  # type: ignore[arg-type]
    for other in made.live:
        if other is not joiner:
            assert await joiner.network.dial(other.peer_id, other.network.maddrs)
    return joiner


def ids(peers: Sequence[RoundPeer]) -> list[str]:
    return [peer.peer_id for peer in peers]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_newcomer_gets_the_committed_state(made: Swarm) -> None:
    joiner, donor = await _newcomer(made), made.live[0]
    assert await asyncio.wait_for(joiner.catch_up([donor.peer_id]), 20)
    assert joiner.store.head == donor.store.head
    assert torch.equal(joiner.parameters, donor.parameters)
    assert joiner.transfers == [("download", "ok")]
    assert not await joiner.catch_up([donor.peer_id])  # nobody is heavier any more


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", EVIL)
async def test_a_donor_that_does_wrong_is_refused_and_others_asked(made: Swarm, name: str) -> None:
    evil, reason = EVIL[name]
    joiner, honest = await _newcomer(made), made.live[0]
    donor = await _newcomer(made)
    state, chain = honest.store.committed, honest.store.history.since(0)
    corrupt(donor, evil, state, chain)
    assert await joiner.network.dial(donor.peer_id, donor.network.maddrs)
    before = joiner.store.head
    assert not await asyncio.wait_for(joiner.catch_up([donor.peer_id]), 20)
    assert joiner.store.head == before  # nothing of it was believed
    assert joiner.transfers == [("download", reason)]
    assert await asyncio.wait_for(joiner.catch_up([donor.peer_id, honest.peer_id]), 20)
    assert joiner.store.head == honest.store.head
    assert torch.equal(joiner.parameters, honest.parameters)


@contextmanager
def counted(donor: RoundPeer) -> Iterator[list[int]]:
    """The chunks that a donor sends."""
    sent: list[int] = []
    send = donor.transfer.donor._send

    async def count(channel: StreamChannel, index: int) -> bool:
        sent.append(index)
        return await send(channel, index)

    donor.transfer.donor._send = count  # type: ignore[method-assign]  # it only counts
    yield sent
    del donor.transfer.donor._send  # the method of its class again


@pytest.mark.asyncio(loop_scope="module")
async def test_all_donors_send_their_share(made: Swarm) -> None:
    joiner, donors = await _newcomer(made), made.live[:3]
    with counted(donors[0]) as one, counted(donors[1]) as two, counted(donors[2]) as three:
        assert await asyncio.wait_for(joiner.catch_up(ids(donors)), 20)
    assert torch.equal(joiner.parameters, donors[0].parameters)
    assert {*one, *two, *three} == set(range(6))
    assert all(sent for sent in (one, two, three))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", ["wrong-bytes", "stalled", "endless"])
async def test_one_liar_among_three_costs_nothing_but_itself(made: Swarm, name: str) -> None:
    liar = await _newcomer(made)
    state, chain = made.live[0].store.committed, made.live[0].store.history.since(0)
    corrupt(liar, EVIL[name][0], state, chain)
    joiner = await _newcomer(made)
    assert await joiner.network.dial(liar.peer_id, liar.network.maddrs)
    assert await asyncio.wait_for(joiner.catch_up([liar.peer_id, *ids(made.live[:2])]), 20)
    assert joiner.store.head == made.live[0].store.head
    assert torch.equal(joiner.parameters, made.live[0].parameters)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_donor_that_stalls_is_named_though_others_sent_what_it_owed(made: Swarm) -> None:
    staller, honest = await _newcomer(made), made.live[0]
    corrupt(staller, EVIL["stalled"][0], honest.store.committed, honest.store.history.since(0))
    joiner = await _newcomer(made, chunk_seconds=60.0)  # so long that no deadline of a chunk names it
    assert await joiner.network.dial(staller.peer_id, staller.network.maddrs)
    with capture_logs() as logs:
        assert await asyncio.wait_for(joiner.catch_up([staller.peer_id, honest.peer_id]), 20)
    assert [line["donor"] for line in logs if line["event"] == "a donor was overtaken"] == [staller.peer_id]
    assert joiner.store.head == honest.store.head


@pytest.mark.asyncio(loop_scope="module")
async def test_an_invented_history_is_not_believed_by_a_newcomer(made: Swarm) -> None:
    """A peer that is its own swarm, with more work than the real one."""
    loner = await _newcomer(made, terms=replace(made.terms, min_group_size=1))
    for step in range(5):
        result = await asyncio.wait_for(loner.outer_step(torch.ones(PARAMETERS), 50_000), 20)
        assert result.committed, step
    joiner = await _newcomer(made)
    assert await joiner.network.dial(loner.peer_id, loner.network.maddrs)
    honest = made.live[:2]
    assert await asyncio.wait_for(joiner.catch_up([loner.peer_id, *ids(honest)]), 20)
    assert joiner.store.head == honest[0].store.head
    assert loner.store.head.work > joiner.store.head.work
    # Nor alone, as long as the records tell that there are others.
    another = await _newcomer(made)
    assert await another.network.dial(loner.peer_id, loner.network.maddrs)
    claims = {loner.peer_id: loner.store.head, **{peer.peer_id: peer.store.head for peer in honest}}
    assert not await asyncio.wait_for(another.catch_up([loner.peer_id], claims), 20)
    assert another.transfers == [("download", "alone")]


@pytest.mark.asyncio(loop_scope="module")
async def test_what_has_arrived_stays_when_all_donors_hang_up(made: Swarm) -> None:
    joiner, honest, fickle = await _newcomer(made), made.live[0], await _newcomer(made)
    state, chain = honest.store.committed, honest.store.history.since(0)

    async def four_chunks(channel: StreamChannel, state: Pending, chain: list[Certificate]) -> None:
        await offer(channel, state, chain)
        for _ in range(4):
            await channel.send(Values(index=(index := await wanted(channel))), chunk(state, index))
        await channel.send(Unavailable(reason="old"))

    corrupt(fickle, four_chunks, state, chain)
    assert await joiner.network.dial(fickle.peer_id, fickle.network.maddrs)
    assert not await asyncio.wait_for(joiner.catch_up([fickle.peer_id]), 20)
    with counted(honest) as sent:
        assert await asyncio.wait_for(joiner.catch_up([honest.peer_id]), 20)
    assert torch.equal(joiner.parameters, honest.parameters)
    assert sorted(sent) == [4, 5]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_donor_serves_what_it_offered_while_its_swarm_goes_on(made: Swarm) -> None:
    donor = made.live[0]
    asking = await _newcomer(made)
    channel = await asking.network.open(donor.peer_id, "/waggle/2/state", "state", 5.0)
    await channel.send(Ask(run_id="test@0123456789abcdef", since=0))
    offer, _ = await channel.receive(Offer, timeout=5.0)
    offered = donor.store.committed
    group = made.peers[:4]
    made.see()
    await made.step({peer.peer_id: torch.ones(PARAMETERS) for peer in group}, peers=group)
    assert donor.store.committed is not offered
    for index in range(len(chunk_slices(PARAMETERS))):
        await channel.send(Want(index=index))
        values, payload = await channel.receive(Values, timeout=5.0)
        assert values.index == index
        assert payload == chunk(offered, index)
    assert (
        offer.digest
        == offered.digest
        == named_state(donor.store.layout, offer.outer_step, offered.parameters, {}).digest
    )
    await channel.send(Thanks())
    channel.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_more_uploads_than_allowed_are_told_so(made: Swarm) -> None:
    donor, asking = made.live[1], await _newcomer(made)
    channels = [await asking.network.open(donor.peer_id, "/waggle/2/state", "state", 5.0) for _ in range(5)]
    answers = []
    for channel in channels:
        await channel.send(Ask(run_id="test@0123456789abcdef", since=0))
        answer, _ = await channel.receive(Offer, Unavailable, timeout=5.0)
        answers.append(answer.reason if isinstance(answer, Unavailable) else "offered")
    for channel in channels:
        channel.close()
    assert answers == ["offered"] * 4 + ["busy"]


@pytest.mark.asyncio(loop_scope="module")
async def test_before_the_first_link_the_lower_digest_is_everybodys(made: Swarm) -> None:
    one = await made.add(initial=torch.zeros(PARAMETERS))
    other = await made.add(initial=torch.ones(PARAMETERS))
    lower, higher = sorted((one, other), key=lambda peer: peer.store.head.digest)
    assert await lower.network.dial(higher.peer_id, higher.network.maddrs)
    assert not await lower.catch_up([higher.peer_id])
    assert await higher.catch_up([lower.peer_id])
    assert higher.store.head == lower.store.head
