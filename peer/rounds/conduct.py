"""The leader's side once a group is formed: whose contributions count, which link is committed, or who is to blame."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from peer.rounds.absences import Absences
from peer.rounds.context import Context
from peer.rounds.failures import Failures, blame
from peer.rounds.members import Members
from peer.rounds.messages import Committed, Failed, Group, Include, Proceed, Promised, Received, Voted
from peer.rounds.verdict import Report, certify, distrusted, include
from swarm.history import acceptors_of, is_quorum
from swarm.identity import PeerId
from swarm.wire import Message


class Abort(Exception):  # noqa: N818  # how an attempt may end, not an error
    """Nothing is committed. ``culprits``: whom the next attempt is better off without."""

    def __init__(self, reason: str, *culprits: PeerId):
        super().__init__(reason)
        self.reason, self.culprits = reason, culprits


class Conduct:
    """Leads one group. Every wait has a deadline; a failure that makes success impossible ends it at once.

    previous: participants of the last link, None before the first. forgetful: see ``swarm.history.is_quorum``.
    """

    def __init__(
        self,
        context: Context,
        members: Members,
        absences: Absences,
        group: Group,
        previous: Mapping[PeerId, int] | None,
        forgetful: Collection[PeerId],
    ):
        self._context, self._members, self._absences, self._group = context, members, absences, group
        self._previous, self._forgetful = previous, forgetful
        self._peers = {member.peer_id for member in group.members}
        self._failures = Failures()
        if group.finish is not None:
            self._acceptors = acceptors_of(group.finish, previous)
        else:  # of the link that is to come
            self._acceptors = frozenset(self._peers if previous is None or group.isolated else previous)
        self._promised: set[PeerId] = set()
        self._reports: dict[PeerId, Report] = {}
        self._votes: dict[PeerId, Voted] = {}

    async def run(self) -> None:
        """Sends the group its verdict and the certificate. Raises Abort."""
        if self._group.finish is None:
            await self._decide_inclusion()
        else:
            await self._collect_promises()
            await self._members.broadcast(Proceed())
        await self._collect_votes()

    # -- who takes part in no lower ballot any more ----------------------------------------------------------

    async def _collect_promises(self) -> None:
        """Until a quorum has promised. Nobody may vote before: docs/adr/0002."""

        def hopeless() -> bool:
            return not self._quorum(self._peers - (self._failures.accusations.keys() - self._promised))

        def take(peer: PeerId, message: Message | None) -> bool:
            self._hear(peer, message)
            return self._quorum(self._promised) or hopeless()

        if self._quorum(self._promised):
            return
        if not await self._members.until(take, self._context.deadlines.silence):
            raise Abort("votes-deadline", *sorted(self._peers - self._promised))
        if not self._quorum(self._promised):
            raise self._lost()

    def _quorum(self, peers: Collection[PeerId]) -> bool:
        return is_quorum(self._acceptors, peers, self._forgetful)

    # -- whose contributions count ---------------------------------------------------------------------------

    async def _decide_inclusion(self) -> None:
        weights = {member.peer_id: member.examples for member in self._group.members}
        reducers = {member.peer_id for member in self._group.members if member.reducer}

        def reported() -> bool:
            return self._reports.keys() >= reducers

        def take(peer: PeerId, message: Message | None) -> bool:
            self._hear(peer, message)
            return reported() or bool(self._failures.accusations)

        deadlines = self._context.deadlines
        if not await self._members.until(take, deadlines.exchange + deadlines.silence):
            raise Abort("exchange-deadline", *sorted(reducers - self._reports.keys()))
        if not reported():
            await self._hear_more(reported)
        if not reported():
            raise self._lost()
        reports = {reducer: self._reports[reducer] for reducer in reducers}
        liars = distrusted(weights, reports)
        if liars:
            raise Abort("reducer-denied", *liars)
        verdict = include(weights, reports, self._context.max_norm_ratio)
        if len(verdict.peers) < self._context.terms.min_group_size:
            raise Abort("too-few", *verdict.refused)
        if not any(weights[peer] for peer in verdict.peers):
            raise Abort("no-work")
        await self._collect_promises()  # a reducer's came before its report; another's may still be on its way
        await self._members.broadcast(Include(peers=sorted(verdict.peers), refused=dict(verdict.refused)))

    # -- which link is committed -----------------------------------------------------------------------------

    async def _collect_votes(self) -> None:
        def hopeless() -> bool:
            return not self._quorum(self._peers - self._lost_votes())

        def take(peer: PeerId, message: Message | None) -> bool:
            self._hear(peer, message)
            return self._committed() or hopeless()

        deadlines = self._context.deadlines
        await self._members.until(take, deadlines.commit + deadlines.silence)
        if not self._committed() and hopeless():
            await self._hear_more(self._committed)
        certificate = certify(self._votes, self._group.ballot, self._previous, self._forgetful)
        if certificate is None:
            raise (
                self._lost()
                if self._lost_votes()
                else Abort("votes-deadline", *sorted(self._peers - self._votes.keys()))
            )
        await self._members.broadcast(Committed(certificate=certificate))

    def _committed(self) -> bool:
        return certify(self._votes, self._group.ballot, self._previous, self._forgetful) is not None

    def _lost_votes(self) -> set[PeerId]:
        return self._failures.accusations.keys() - self._votes.keys()

    # -- what members say ------------------------------------------------------------------------------------

    def _hear(self, peer: PeerId, message: Message | None) -> None:
        if message is None:
            self._absences.add(peer)
            self._failures.add(peer, None, "member-gone", self._peers)
        elif isinstance(message, Failed):
            self._failures.add(peer, message.culprit, message.reason, self._peers)
        elif isinstance(message, Promised):
            self._promised.add(peer)
        elif isinstance(message, Received):
            self._reports.setdefault(peer, Report(message.refused, message.square_norms))
        elif isinstance(message, Voted):
            self._votes[peer] = message

    async def _hear_more(self, enough: Callable[[], bool]) -> None:
        """Somebody gave up. One's word against another's: the others may say the same, or report after all."""

        def take(peer: PeerId, message: Message | None) -> bool:
            self._hear(peer, message)
            return enough() or self._failures.certain

        if not self._failures.certain:
            await self._members.until(take, self._context.deadlines.alive)

    def _lost(self) -> Abort:
        return Abort(self._failures.reason, *blame(self._failures.accusations))
