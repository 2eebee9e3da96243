"""The leader's side of one attempt: seats, call, group, verdict, votes.

Any peer can lead; which one does is decided by where the others sit down (``member.py``). A leader moves messages and
applies the pure decisions of ``assembly`` and ``verdict``. It holds no power over the result: it cannot commit
without a quorum, and whatever it leaves half done, the next ballot finishes (docs/adr/0002).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import structlog

from peer.rounds.absences import Absences
from peer.rounds.assembly import Action, Decision, Seat, Table, decide, has_room
from peer.rounds.context import Context
from peer.rounds.gates import check_weight
from peer.rounds.messages import (
    Aborted,
    Alive,
    Call,
    Committed,
    Failed,
    Group,
    Include,
    Join,
    Member,
    Progress,
    Ready,
    Received,
    Refused,
    Seated,
    Voted,
)
from peer.rounds.verdict import Report, certify, include, next_ballot, to_finish
from swarm.history import Ballot, is_quorum
from swarm.identity import PeerId
from swarm.wire import Channel, Message, WireError

log = structlog.get_logger(__name__)

FromMember = (Progress, Ready, Received, Voted, Failed, Alive)


class _Abort(Exception):  # noqa: N818  # how an attempt may end, not an error
    def __init__(self, reason: str, *culprits: PeerId):
        super().__init__(reason)
        self.reason, self.culprits = reason, culprits


class Leader:
    """One attempt at the outer step after the ledger's head. It begins to lead when its own peer sits down.

    gone: peers that this peer knows to be away; shared with ``Rounds``. alone_since: since when it has known no
    majority, kept across attempts.
    """

    def __init__(self, context: Context, gone: Absences, alone_since: float):
        self._context, self._gone = context, gone
        self.alone_since = alone_since
        self._head = context.ledger.head
        self._previous = context.ledger.participants
        self._channels: dict[PeerId, Channel] = {}
        self._seats: dict[PeerId, Seat] = {}
        self._joins: dict[PeerId, Join] = {}
        self._readies: dict[PeerId, Ready] = {}
        self._inbox: asyncio.Queue[tuple[PeerId, Message | None]] = asyncio.Queue()
        self._opened_at: float | None = None
        self._closed: Refused | None = None
        self._formed = False
        self._waiting_for = ""
        self.promised_floor: list[Ballot] = []

    @property
    def formed(self) -> bool:
        """Whether the group is formed: nobody can sit down any more."""
        return self._formed

    @property
    def closed(self) -> bool:
        """Whether everyone was sent away."""
        return self._closed is not None

    @property
    def stuck(self) -> bool:
        """Whether we lead and lack a majority or company."""
        return bool(self._waiting_for) and not self._formed and self._closed is None

    # -- seats -----------------------------------------------------------------------------------------------

    async def seat(self, channel: Channel, join: Join) -> None:
        """Gives a member a seat and reads its messages until either side ends."""
        peer = channel.remote
        refusal = self._refusal(peer)
        if refusal is not None:
            await channel.send(refusal)
            return
        if peer in self._channels:  # it lost its old channel before we noticed
            self._channels.pop(peer).close()
        self._gone.discard(peer)
        self._channels[peer], self._joins[peer] = channel, join
        self._seats[peer] = Seat(time.monotonic(), forgetful=join.forgetful)
        try:
            await channel.send(Seated())
            if peer == self._context.peer_id:
                self._opened_at = time.monotonic()
            await self._inbox.put((peer, Alive()))  # the table changed
            while True:
                message, _ = await channel.receive(*FromMember, timeout=self._context.deadlines.silence)
                if self._channels.get(peer) is not channel:
                    return
                await self._inbox.put((peer, message))
        except WireError as error:
            log.debug("a seat is empty", peer=peer, why=str(error))
        finally:
            if self._channels.get(peer) is channel:
                await self._inbox.put((peer, None))

    def _refusal(self, peer: PeerId) -> Refused | None:
        if self._closed is not None:
            return self._closed
        if self._formed:
            return self.refuse("formed")
        if not has_room(self._table(), peer, self._context.terms):
            return self.refuse("full")
        return None

    def refuse(self, reason: str, leader: PeerId | None = None) -> Refused:
        """A refusal that says where this peer stands."""
        head = self._head
        return Refused(reason=reason, leader=leader, outer_step=head.outer_step, digest=head.digest, work=head.work)

    async def close(self, reason: str, leader: PeerId | None = None) -> None:
        """Sends everyone away, to ``leader`` if there is one."""
        self._closed = self.refuse(reason, leader)
        await self._broadcast(self._closed)
        self._end()
        await self._inbox.put((self._context.peer_id, Alive()))  # ``run`` looks up and ends

    def _end(self) -> None:
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()
        self._closed = self._closed or self.refuse("over")

    def _table(self, called_at: float | None = None) -> Table:
        now = time.monotonic()
        return Table(
            self._seats,
            self._previous,
            self._gone.known(),
            self._opened_at or now,
            self.alone_since,
            called_at,
        )

    # -- the attempt -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Leads to a commit or an abort, and tells everyone."""
        heart = asyncio.ensure_future(self._beat())
        try:
            decision = await self._assemble()
            if decision is None:
                return
            group = self._form(decision)
            try:
                await self._broadcast(group)
                if group.finish is None:
                    await self._decide_inclusion(group)
                await self._collect_votes(group)
            except _Abort as abort:
                log.info("round aborted", reason=abort.reason, culprits=abort.culprits)
                culprits = [peer for peer in abort.culprits if peer != self._context.peer_id]
                await self._broadcast(Aborted(reason=abort.reason, culprits=culprits))
            await self._until_heard()
        finally:
            heart.cancel()
            self._end()

    async def _until_heard(self) -> None:
        """Members hang up when they have read the outcome; closing before that could lose it on the way."""
        waiting = set(self._channels)

        def take(peer: PeerId, message: Message | None) -> bool:
            if message is None:
                waiting.discard(peer)
            return not waiting

        if waiting:
            await self._until(take, self._context.deadlines.silence)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._context.deadlines.alive)
            await self._broadcast(Alive())

    async def _send(self, peer: PeerId, channel: Channel, message: Message) -> None:
        try:
            await asyncio.wait_for(channel.send(message), self._context.deadlines.silence)
        except (WireError, asyncio.TimeoutError):
            if self._channels.get(peer) is channel:
                await self._inbox.put((peer, None))

    async def _broadcast(self, message: Message) -> None:
        await asyncio.gather(*(self._send(peer, channel, message) for peer, channel in list(self._channels.items())))

    async def _assemble(self) -> Decision | None:
        """The decision to form the group; None when the table was closed before."""
        called_at: float | None = None
        while self._closed is None:
            pause: float | None = None
            if self._opened_at is not None:  # until our own peer sits here it may lead elsewhere
                decision = decide(self._table(called_at), self._context.terms, time.monotonic())
                self._note(decision)
                if decision.action is Action.FORM:
                    return decision
                if decision.action is Action.CALL:
                    called_at = time.monotonic()
                    await self._broadcast(Call())
                    continue
                pause = max(0.01, min(1.0, decision.again_in))
            try:
                peer, message = await asyncio.wait_for(self._inbox.get(), pause)
            except asyncio.TimeoutError:
                continue
            await self._seat_message(peer, message)
        return None

    def _note(self, decision: Decision) -> None:
        if decision.reason not in ("majority", "company"):
            self.alone_since = time.monotonic()
        waiting = decision.reason if decision.reason in ("majority", "company") else ""
        if waiting != self._waiting_for:
            self._waiting_for = waiting
            self._context.listener.waiting(waiting)

    async def _seat_message(self, peer: PeerId, message: Message | None) -> None:
        if message is None:
            self._leave(peer)
        elif isinstance(message, Progress | Ready) and peer in self._seats:
            reason = check_weight(message.examples, self._context.max_examples)
            if reason:
                self._context.listener.refused(peer, reason)
                channel = self._channels[peer]
                await self._send(peer, channel, self.refuse(reason))
                self._leave(peer)
                channel.close()
                return
            seat = replace(self._seats[peer], examples=message.examples)
            if isinstance(message, Ready):
                self._readies[peer] = message
                seat = replace(seat, ready_at=time.monotonic())
            self._seats[peer] = seat

    def _leave(self, peer: PeerId) -> None:
        self._channels.pop(peer, None)
        self._seats.pop(peer, None)
        self._readies.pop(peer, None)
        self._gone.add(peer)

    def _form(self, decision: Decision) -> Group:
        """The group message; those who are not ready lose their seats."""
        self._formed = True
        for peer in list(self._channels):
            if peer not in decision.members:
                self._channels.pop(peer).close()
        readies = {peer: self._readies[peer] for peer in decision.members}
        promised = [ready.promised for ready in readies.values() if ready.promised is not None]
        ballot = next_ballot([*promised, *self.promised_floor], self._context.peer_id)
        accepted = {peer: ready.accepted for peer, ready in readies.items() if ready.accepted is not None}
        finish = to_finish(accepted)
        members = [
            Member(
                peer_id=peer,
                maddrs=self._joins[peer].maddrs,
                examples=ready.examples,
                reducer=bool(self._joins[peer].maddrs),
            )
            for peer, ready in sorted(readies.items())
        ]
        return Group(
            ballot=ballot,
            members=members,
            isolated=decision.isolated,
            finish=finish[0] if finish else None,
            donors=finish[1] if finish else [],
        )

    async def _decide_inclusion(self, group: Group) -> None:
        weights = {member.peer_id: member.examples for member in group.members}
        awaited = {member.peer_id for member in group.members if member.reducer}
        reports: dict[PeerId, Report] = {}

        def take(peer: PeerId, message: Message | None) -> bool:
            if message is None:
                self._gone.add(peer)
                raise _Abort("member-gone", peer)
            if isinstance(message, Failed):
                raise _Abort(message.reason, *([message.culprit] if message.culprit else [peer]))
            if isinstance(message, Received) and peer in awaited:
                reports[peer] = Report(message.refused, message.square_norms)
            return len(reports) == len(awaited)

        deadlines = self._context.deadlines
        if not await self._until(take, deadlines.exchange + deadlines.silence):
            raise _Abort("exchange-deadline", *sorted(awaited - set(reports)))
        verdict = include(weights, reports, self._context.max_norm_ratio)
        for peer, reason in verdict.refused.items():
            if reason in ("norm", "malformed"):  # the others were counted where they were refused
                self._context.listener.refused(peer, reason)
        if len(verdict.peers) < self._context.terms.min_group_size:
            raise _Abort("too-few", *verdict.refused)
        if not any(weights[peer] for peer in verdict.peers):
            raise _Abort("no-work")
        await self._broadcast(Include(peers=sorted(verdict.peers), refused=dict(verdict.refused)))

    async def _collect_votes(self, group: Group) -> None:
        votes: dict[PeerId, Voted] = {}
        failed: dict[PeerId, PeerId | None] = {}
        forgetful = [peer for peer, seat in self._seats.items() if seat.forgetful]
        members = {member.peer_id for member in group.members}
        acceptors = members if self._previous is None or group.isolated else set(self._previous)

        def take(peer: PeerId, message: Message | None) -> bool:
            if isinstance(message, Voted):
                votes[peer] = message
            elif message is None or isinstance(message, Failed):
                if message is None:
                    self._gone.add(peer)
                failed.setdefault(peer, message.culprit if isinstance(message, Failed) else peer)
                if not is_quorum(acceptors, members - failed.keys(), forgetful):
                    raise _Abort("votes-lost", *sorted({one for one in failed.values() if one}))
            else:
                return False
            return certify(votes, group.ballot, self._previous, forgetful) is not None

        await self._until(take, self._context.deadlines.commit + self._context.deadlines.silence)
        certificate = certify(votes, group.ballot, self._previous, forgetful)
        if certificate is None:
            raise _Abort("votes-deadline", *sorted(members - votes.keys()))
        await self._broadcast(Committed(certificate=certificate))

    async def _until(self, take: Callable[[PeerId, Message | None], bool], seconds: float) -> bool:
        """Feeds messages to ``take`` until it says enough; False after ``seconds``."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                peer, message = await asyncio.wait_for(self._inbox.get(), max(0.0, deadline - time.monotonic()))
            except asyncio.TimeoutError:
                return False
            if message is None:
                self._channels.pop(peer, None)
            if take(peer, message):
                return True
