"""Finding a seat: ask the peers of the leader order one after the other, and lead where none before us can."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import structlog

from peer.rounds.context import RoundError
from peer.rounds.election import candidates, leader_order
from peer.rounds.messages import ROUND_PROTOCOL, Join, Refused, Seated
from swarm.identity import PeerId
from swarm.wire import Channel, LocalChannel, WireError

if TYPE_CHECKING:
    from peer.rounds.leader import Leader
    from peer.rounds.rounds import Rounds

log = structlog.get_logger(__name__)

_MOST_HOPS = 4
_AGAIN_SECONDS = 0.5
_LOOK_AGAIN_SECONDS = 2.0


async def find_seat(rounds: Rounds, preferred: PeerId | None = None) -> Channel:
    """A channel to a leader that gave us a seat; perhaps to ourselves.

    Args:
        preferred: whom a leader that leads no more sent us to.

    Raises:
        RoundError: behind or digest (download the state first), full, run, or weight.
    """
    while True:
        order = _order(rounds)
        if preferred is not None and not rounds.absences.benched(preferred):
            order = [preferred, *(peer for peer in order if peer != preferred)]
        channel = await _first_seat(rounds, order)
        if channel is not None:
            return channel
        preferred = None
        rounds.context.listener.waiting("company" if len(rounds.listening) < 2 else "leader")
        await rounds.news(_AGAIN_SECONDS)


def _order(rounds: Rounds) -> list[PeerId]:
    context = rounds.context
    isolated = time.monotonic() - rounds.absences.alone_since >= context.terms.isolation_seconds
    peers = candidates(context.ledger.participants, rounds.listening, context.peer_id, isolated)
    order = leader_order(context.run_id, context.ledger.head.outer_step, peers)
    absences = rounds.absences
    return sorted((peer for peer in order if not absences.benched(peer)), key=absences.doubtful)


async def _first_seat(rounds: Rounds, order: Sequence[PeerId]) -> Channel | None:
    ourselves, asked = rounds.context.peer_id, set[PeerId]()
    for peer in order:
        if peer == ourselves:
            return await _lead(rounds, asked)
        channel = await _ask(rounds, peer)
        asked.add(peer)
        if channel is ourselves:
            return await _lead(rounds, asked)
        if isinstance(channel, str):
            continue
        if channel is not None:
            return channel
    return None


async def _ask(rounds: Rounds, peer: PeerId, hops: int = 0) -> Channel | PeerId | None:
    """A channel when ``peer``, or whom it sends us to, gives us a seat; our own id when it sends us to ourselves."""
    context, seconds = rounds.context, rounds.context.deadlines.seat
    try:
        channel: Channel = await context.network.open(peer, ROUND_PROTOCOL, "round", seconds)
    except WireError as error:
        log.debug("cannot reach a leader", peer=peer, why=str(error))
        rounds.absences.add(peer)
        return None
    try:
        head = context.ledger.head
        await channel.send(
            Join(
                run_id=context.run_id, outer_step=head.outer_step, digest=head.digest,
                maddrs=list(context.network.maddrs), forgetful=context.ledger.forgetful,
            )
        )  # fmt: skip
        answer, _ = await channel.receive(Seated, Refused, timeout=2 * seconds)
    except BaseException as error:
        channel.close()
        if not isinstance(error, WireError):
            raise
        log.debug("a leader does not answer", peer=peer, why=str(error))
        rounds.absences.add(peer)
        return None
    if isinstance(answer, Seated):
        rounds.absences.discard(peer)
        return channel
    channel.close()
    assert isinstance(answer, Refused)
    if answer.reason in ("behind", "digest"):
        rounds.ahead = peer
    if answer.reason in ("behind", "digest", "full", "run", "weight"):
        raise RoundError(answer.reason)
    if answer.leader == context.peer_id:
        return context.peer_id
    if answer.leader is not None and hops < _MOST_HOPS and not rounds.absences.benched(answer.leader):
        return await _ask(rounds, answer.leader, hops + 1)
    return None


async def _lead(rounds: Rounds, asked: Collection[PeerId]) -> Channel:
    """Sits down at our own table."""
    context = rounds.context
    ours, theirs = LocalChannel.pair(context.peer_id)
    head = context.ledger.head
    join = Join(
        run_id=context.run_id, outer_step=head.outer_step, digest=head.digest,
        maddrs=list(context.network.maddrs), forgetful=context.ledger.forgetful,
    )  # fmt: skip
    leader = await rounds.own_table()

    async def sit() -> None:
        try:
            await leader.seat(theirs, join)
        finally:
            theirs.close()

    context.spawn(sit())
    try:
        answer, _ = await ours.receive(Seated, Refused, timeout=context.deadlines.seat)
    except WireError as error:
        raise RoundError("own-gone", None, str(error)) from error
    if isinstance(answer, Refused):
        raise RoundError(f"own-{answer.reason}")
    context.spawn(_look_again(rounds, leader, asked))
    return ours


async def _look_again(rounds: Rounds, leader: Leader, asked: Collection[PeerId]) -> None:
    """Closes the table when others come before us in the order and this may not be the right one.

    Everyone who sits there, ourselves first, then asks again. Before the first link the right one is with a peer that
    we have met only now: two tables could both go on, on two histories. Later it may be anywhere else, as long as we
    have no majority: two peers that could not reach each other for a moment would wait for each other's members.
    """
    began = time.monotonic()
    while not leader.closed and not leader.formed:
        await asyncio.sleep(_AGAIN_SECONDS)
        earlier = list(takewhile(lambda peer: peer != rounds.context.peer_id, _order(rounds)))
        newly_met = rounds.context.ledger.participants is None and not set(earlier) <= set(asked)
        stuck = leader.stuck and time.monotonic() - began >= _LOOK_AGAIN_SECONDS
        if not leader.formed and (newly_met or (stuck and earlier)):
            await leader.close("moved")
