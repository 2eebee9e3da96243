"""The leader's side of one attempt: seats, call, group, verdict, votes.

Any peer can lead; which one does is decided by where the others sit down (``seat.py``). A leader moves messages and
applies the pure decisions of ``assembly`` and ``verdict``. It holds no power over the result: it cannot commit
without a quorum, and whatever it leaves half done, the next ballot finishes (docs/adr/0002).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import structlog

from peer.rounds.absences import Absences
from peer.rounds.assembly import Action, Decision, Seat, Table, decide, has_room
from peer.rounds.context import Context
from peer.rounds.failures import Failures, blame
from peer.rounds.gates import check_weight
from peer.rounds.members import Members
from peer.rounds.messages import (
    Aborted,
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
from peer.rounds.verdict import Report, certify, check_ready, distrusted, include, next_ballot, to_finish
from swarm.history import Ballot, is_quorum
from swarm.identity import PeerId
from swarm.wire import Channel, Message

log = structlog.get_logger(__name__)


class _Abort(Exception):  # noqa: N818  # how an attempt may end, not an error
    def __init__(self, reason: str, *culprits: PeerId):
        super().__init__(reason)
        self.reason, self.culprits = reason, culprits


class Leader:
    """One attempt at the outer step after the ledger's head. It begins to lead when its own peer sits down.

    absences: who is away and since when no majority is known; shared with ``Rounds``. promised: what our own peer
    promised before.
    """

    def __init__(self, context: Context, absences: Absences, promised: Ballot | None):
        self._context, self._absences, self._promised = context, absences, promised
        self._head = context.ledger.head
        self._previous = context.ledger.participants
        self._members = Members(context)
        self._seats: dict[PeerId, Seat] = {}
        self._joins: dict[PeerId, Join] = {}
        self._readies: dict[PeerId, Ready] = {}
        self._opened_at: float | None = None
        self._called_at: float | None = None
        self._closed: Refused | None = None
        self._formed = False
        self._waiting_for = ""
        self._failures = Failures()

    @property
    def outer_step(self) -> int:
        """The committed one that this attempt starts from."""
        return self._head.outer_step

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
        self._absences.discard(peer)
        self._joins[peer] = join
        self._readies.pop(peer, None)
        self._seats[peer] = Seat(time.monotonic(), forgetful=join.forgetful)
        if peer == self._context.peer_id:
            self._opened_at = time.monotonic()
        self._members.wake()  # the table changed
        await self._members.occupy(channel, [Seated()] if self._called_at is None else [Seated(), Call()])

    def _refusal(self, peer: PeerId) -> Refused | None:
        if self._closed is not None:
            return self._closed
        if self._formed:
            return self.refuse("formed")
        if not has_room(self._table(), peer, self._context.terms, self._context.peer_id):
            return self.refuse("full")
        return None

    def refuse(self, reason: str, leader: PeerId | None = None) -> Refused:
        """A refusal that says where this peer stands."""
        head = self._head
        return Refused(reason=reason, leader=leader, outer_step=head.outer_step, digest=head.digest, work=head.work)

    async def close(self, reason: str, leader: PeerId | None = None) -> None:
        """Sends everyone away, to ``leader`` if there is one."""
        self._closed = self.refuse(reason, leader)
        await self._members.broadcast(self._closed)
        self._members.wake()  # ``run`` looks up, waits until they have read it, and ends

    def _table(self) -> Table:
        return Table(
            self._seats,
            self._previous,
            self._absences.known(),
            self._opened_at or time.monotonic(),
            self._absences.alone_since,
            self._called_at,
        )

    # -- the attempt -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Leads to a commit or an abort, and tells everyone."""
        heart = asyncio.ensure_future(self._members.beat())
        try:
            decision = await self._assemble()
            if decision is None:
                await self._until_heard()
                return
            group = self._form(decision)
            try:
                await self._members.broadcast(group)
                if group.finish is None:
                    await self._decide_inclusion(group)
                await self._collect_votes(group)
            except _Abort as abort:
                log.info("round aborted", reason=abort.reason, culprits=abort.culprits)
                await self._members.broadcast(Aborted(reason=abort.reason, culprits=list(abort.culprits)))
            await self._until_heard()
        finally:
            heart.cancel()
            self._closed = self._closed or self.refuse("over")
            self._members.end()

    async def _until_heard(self) -> None:
        """Members hang up when they have read the outcome; closing before that could lose it on the way."""
        if self._members.present:
            await self._members.until(lambda *_: not self._members.present, self._context.deadlines.silence)

    async def _assemble(self) -> Decision | None:
        """The decision to form the group; None when the table was closed before."""
        while self._closed is None:
            pause: float | None = None
            if self._opened_at is not None:  # until our own peer sits here it may lead elsewhere
                decision = decide(self._table(), self._context.terms, time.monotonic())
                self._note(decision)
                if decision.action is Action.FORM:
                    return decision
                if decision.action is Action.CALL:
                    self._called_at = time.monotonic()
                    await self._members.broadcast(Call())
                    continue
                pause = max(0.01, min(1.0, decision.again_in))
            heard = await self._members.hear(pause)
            if heard is not None:
                await self._seat_message(*heard)
        return None

    def _note(self, decision: Decision) -> None:
        waiting = decision.reason if decision.reason in ("majority", "company") else ""
        self._members.alone = bool(waiting) or decision.isolated
        if not self._members.alone:
            self._absences.majority()
        if waiting != self._waiting_for:
            self._waiting_for = waiting
            self._context.listener.waiting(waiting)

    async def _seat_message(self, peer: PeerId, message: Message | None) -> None:
        if message is None:
            self._leave(peer)
        elif isinstance(message, Progress | Ready):
            context = self._context
            reason = check_weight(message.examples, context.max_examples)
            if isinstance(message, Ready) and not reason:
                reason = check_ready(message, self._promised, self._head, context.run_id, context.max_examples)
            if reason:
                context.listener.refused(peer, reason)
                await self._members.send(peer, self.refuse(reason))
                self._leave(peer)
                return
            seat = replace(self._seats[peer], examples=message.examples)
            if isinstance(message, Ready):
                self._readies[peer] = message
                seat = replace(seat, ready_at=time.monotonic())
            self._seats[peer] = seat

    def _leave(self, peer: PeerId) -> None:
        self._members.vacate(peer)
        self._seats.pop(peer, None)
        self._readies.pop(peer, None)
        self._absences.add(peer)

    def _form(self, decision: Decision) -> Group:
        """The group message; those who are not ready lose their seats, be it our own peer."""
        self._formed = True
        for peer in list(self._members.present):
            if peer not in decision.members:
                self._members.vacate(peer)
        readies = {peer: self._readies[peer] for peer in decision.members}
        promised = [ready.promised for ready in readies.values() if ready.promised is not None]
        ballot = next_ballot(promised + ([self._promised] if self._promised else []), self._context.peer_id)
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

    # -- with a group ----------------------------------------------------------------------------------------

    async def _decide_inclusion(self, group: Group) -> None:
        weights = {member.peer_id: member.examples for member in group.members}
        awaited = {member.peer_id for member in group.members if member.reducer}
        reports: dict[PeerId, Report] = {}

        def take(peer: PeerId, message: Message | None) -> bool:
            if isinstance(message, Received) and peer in awaited:
                reports[peer] = Report(message.refused, message.square_norms)
            self._note_failure(group, peer, message)
            return reports.keys() == awaited or bool(self._failures.accusations)

        def take_more(peer: PeerId, message: Message | None) -> bool:
            take(peer, message)
            return reports.keys() == awaited or self._failures.certain

        deadlines = self._context.deadlines
        if not await self._members.until(take, deadlines.exchange + deadlines.silence):
            raise _Abort("exchange-deadline", *sorted(awaited - reports.keys()))
        if reports.keys() != awaited and not self._failures.certain:
            # One's word against another's: give the others time to say the same, or to report after all.
            await self._members.until(take_more, deadlines.alive)
        if reports.keys() != awaited:
            raise self._lost()
        liars = distrusted(weights, reports)
        if liars:
            raise _Abort("reducer-denied", *liars)
        verdict = include(weights, reports, self._context.max_norm_ratio)
        if len(verdict.peers) < self._context.terms.min_group_size:
            raise _Abort("too-few", *verdict.refused)
        if not any(weights[peer] for peer in verdict.peers):
            raise _Abort("no-work")
        await self._members.broadcast(Include(peers=sorted(verdict.peers), refused=dict(verdict.refused)))

    async def _collect_votes(self, group: Group) -> None:
        votes: dict[PeerId, Voted] = {}
        forgetful = [peer for peer, seat in self._seats.items() if seat.forgetful]
        members = {member.peer_id for member in group.members}
        acceptors = members if self._previous is None or group.isolated else set(self._previous)

        def take(peer: PeerId, message: Message | None) -> bool:
            if isinstance(message, Voted):
                votes[peer] = message
                return certify(votes, group.ballot, self._previous, forgetful) is not None
            self._note_failure(group, peer, message)
            lost = self._failures.accusations.keys() - votes.keys()
            if lost and not is_quorum(acceptors, members - lost, forgetful):
                raise self._lost()
            return False

        await self._members.until(take, self._context.deadlines.commit + self._context.deadlines.silence)
        certificate = certify(votes, group.ballot, self._previous, forgetful)
        if certificate is None:
            raise _Abort("votes-deadline", *sorted(members - votes.keys()))
        await self._members.broadcast(Committed(certificate=certificate))

    def _note_failure(self, group: Group, peer: PeerId, message: Message | None) -> None:
        members = [member.peer_id for member in group.members]
        if message is None:
            self._absences.add(peer)
            self._failures.add(peer, None, "member-gone", members)
        elif isinstance(message, Failed):
            self._failures.add(peer, message.culprit, message.reason, members)

    def _lost(self) -> _Abort:
        return _Abort(self._failures.reason, *blame(self._failures.accusations))
