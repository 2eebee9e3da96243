"""The leader's side of one attempt: seats, call, group, verdict, votes.

Any peer can lead; which one does is decided by where the others sit down (``seat.py``). A leader moves messages and
applies the pure decisions of ``assembly`` and ``verdict``. It holds no power over the result: it cannot commit
without a quorum, and whatever it leaves half done, the next ballot finishes (docs/adr/0002).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace

import structlog

from peer.rounds.absences import Absences
from peer.rounds.assembly import Action, Decision, Seat, Table, decide, has_room
from peer.rounds.bandwidth import divide, link_rates
from peer.rounds.conduct import Abort, Conduct
from peer.rounds.context import Context
from peer.rounds.gates import check_weight
from peer.rounds.members import Members
from peer.rounds.messages import (
    Aborted,
    Accepted,
    Call,
    Group,
    Join,
    Member,
    Progress,
    Ready,
    Refused,
    Seated,
)
from peer.rounds.verdict import check_ready, next_ballot, to_finish
from swarm.history import Ballot
from swarm.identity import PeerId
from swarm.wire import Channel, Message

log = structlog.get_logger(__name__)


class Leader:
    """One attempt at the outer step after the ledger's head. It begins to lead when its own peer sits down.

    absences: who is away and since when no majority is known; shared with ``Rounds``. promised, accepted: what our
    own peer promised and voted for at this outer step.
    """

    def __init__(self, context: Context, absences: Absences, promised: Ballot | None, accepted: Accepted | None):
        self._context, self._absences, self._promised, self._accepted = context, absences, promised, accepted
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
            self._needed(),
            self._absences.known(),
            self._opened_at or time.monotonic(),
            self._absences.alone_since,
            self._called_at,
        )

    def _needed(self) -> Mapping[PeerId, int] | None:
        """Whose majority may go on: the last participants'; at the first link theirs for whom somebody has voted.

        That link may be committed where we cannot see it. Only when its participants stay away is it given up.
        """
        if self._previous is not None:
            return self._previous
        votes = [ready.accepted for ready in self._readies.values() if ready.accepted is not None]
        votes += [self._accepted] if self._accepted is not None else []
        return max(votes, key=lambda one: one.ballot.key()).link.participants if votes else None

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
                await self._conduct(group).run()
            except Abort as abort:
                log.info("round aborted", reason=abort.reason, culprits=abort.culprits)
                await self._members.broadcast(Aborted(reason=abort.reason, culprits=list(abort.culprits)))
            await self._until_heard()
        finally:
            heart.cancel()
            self._closed = self._closed or self.refuse("over")
            self._members.end()

    def _forgetful(self, *, isolated: bool) -> list[PeerId]:
        """Who may have voted and not know it. Where a majority is given up, so is what it may have voted for."""
        return [] if isolated else [peer for peer, seat in self._seats.items() if seat.forgetful]

    def _conduct(self, group: Group) -> Conduct:
        forgetful = self._forgetful(isolated=group.isolated)
        return Conduct(self._context, self._members, self._absences, group, self._previous, forgetful)

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
                await self._members.dismiss(peer, self.refuse(reason))
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
        forgetful = self._forgetful(isolated=decision.isolated)
        finish = to_finish(accepted, decision.members, self._previous, forgetful)
        return Group(
            ballot=ballot,
            members=self._group_members(readies),
            isolated=decision.isolated,
            finish=finish[0] if finish else None,
            donors=finish[1] if finish else [],
        )

    def _group_members(self, readies: Mapping[PeerId, Ready]) -> list[Member]:
        """In the order of peer ids, each with a part that suits its link; those that nobody can dial with none."""
        maddrs = {peer: self._joins[peer].maddrs for peer in sorted(readies)}
        reducers = [peer for peer, known in maddrs.items() if known]
        rates = link_rates({peer: ready.rates for peer, ready in readies.items()}, reducers)
        lengths = divide(self._context.parameters, reducers, len(readies), rates) if reducers else {}
        return [
            Member(peer_id=peer, maddrs=known, examples=readies[peer].examples, values=lengths.get(peer, 0))
            for peer, known in maddrs.items()
        ]
