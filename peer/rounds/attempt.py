"""The member's side of one attempt: find a seat, contribute, vote, commit."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import structlog
import torch

from peer.rounds.assembly import longest_assembly
from peer.rounds.bandwidth import well_cut
from peer.rounds.context import RoundError
from peer.rounds.gates import check_shape, check_weight
from peer.rounds.messages import (
    Aborted,
    Accepted,
    Alive,
    Call,
    Committed,
    Group,
    Include,
    Proceed,
    Progress,
    Promised,
    Ready,
    Refused,
    Voted,
)
from peer.rounds.proposal import Proposal
from peer.rounds.seat import find_seat
from peer.rounds.verdict import check_ballot, check_finish
from peer.values import LocalResult, RoundResult, RoundTimes, Stage
from swarm.deadline import within
from swarm.history import Certificate, HistoryError, Link, Vote, check_step
from swarm.identity import PeerId
from swarm.wire import Channel, Message, WireError

if TYPE_CHECKING:
    from peer.rounds.rounds import Rounds

log = structlog.get_logger(__name__)

FromLeader = (Alive, Call, Group, Include, Proceed, Committed, Aborted, Refused)
_PROGRESS_SECONDS = 0.25


class Moved(Exception):  # noqa: N818  # no error: where to go next
    """The leader leads no more; perhaps it says who does."""

    def __init__(self, leader: PeerId | None):
        super().__init__(leader)
        self.leader = leader


class Attempt:
    """One try at the next outer step. ``report`` and ``called`` are for the training thread, the rest for the loop.

    called: set when the swarm has done enough.
    """

    def __init__(self, rounds: Rounds):
        self.called = threading.Event()
        self.work: asyncio.Future[LocalResult] = asyncio.get_running_loop().create_future()
        self._rounds, self._context = rounds, rounds.context
        self._loop = asyncio.get_running_loop()
        self._examples = 0
        self._local: LocalResult | None = None
        self._head = rounds.context.ledger.head
        self._previous = rounds.context.ledger.participants
        self._inbox: asyncio.Queue[Message | WireError] = asyncio.Queue()
        self._group_size = 0
        self._refused: dict[PeerId, str] = {}
        self._leader: PeerId | None = None
        self._alone_at = 0.0
        self._marks: dict[Stage, float] = {}
        self._codec_seconds = 0.0
        self._counted = False
        self._residual: torch.Tensor | None = None

    # -- from the training thread ----------------------------------------------------------------------------

    def report(self, examples: int) -> None:
        """Examples done so far since the last commit. Thread-safe."""
        self._examples = examples

    def finish(self, result: LocalResult) -> None:
        """The contribution. Thread-safe; once."""
        self._loop.call_soon_threadsafe(self._set_work, result)

    def _set_work(self, result: LocalResult) -> None:
        if not self.work.done():
            self.work.set_result(result)

    # -- the attempt -----------------------------------------------------------------------------------------

    async def run(self) -> RoundResult:
        """Goes on until the outer step is committed or this attempt has failed. A groupmate's fault is not raised."""
        preferred: PeerId | None = None
        sent_away = set[PeerId]()
        try:
            while True:
                channel = await find_seat(self._rounds, preferred)
                self._leader = channel.remote
                try:
                    await self._sit(channel)
                except Moved as moved:
                    preferred = moved.leader
                    # Once is no wonder: who hears of an abort later than we clears a table where we sat down
                    if preferred is None and channel.remote in sent_away:
                        self._rounds.absences.demote(channel.remote)
                    elif channel.remote != self._context.peer_id:
                        sent_away.add(channel.remote)
                    continue
                return self._result(committed=True)
        except RoundError as error:
            if error.culprit is not None and error.culprit != self._context.peer_id:
                if error.reason == "leader-gone":
                    self._rounds.absences.add(error.culprit)
                elif error.reason in ("leader-malformed", "leader-deadline"):
                    self._rounds.absences.bench(error.culprit)
            log.info("no commit", reason=error.reason, why=str(error), outer_step=self._head.outer_step)
            return self._result(committed=False, reason=error.reason)

    def _result(self, *, committed: bool, reason: str = "") -> RoundResult:
        marks = self._marks

        def between(first: Stage, last: Stage) -> float:
            return marks[last] - marks[first] if first in marks and last in marks else 0.0

        return RoundResult(
            committed=committed,
            outer_step=self._context.ledger.head.outer_step,
            group_size=self._group_size,
            reason=reason,
            refused=self._refused,
            counted=committed and self._counted,
            residual=self._residual if committed else None,
            times=RoundTimes(
                group=between(Stage.READY, Stage.GROUPED),
                exchange=between(Stage.GROUPED, Stage.GATHERED),
                codec=self._codec_seconds,
                commit=between(Stage.GATHERED, Stage.COMMITTED),
            ),
        )

    async def _yield_table(self, leader: PeerId) -> None:
        """Whoever sat down at our table is sent to where we sit ourselves."""
        table = self._rounds.table
        if leader != self._context.peer_id and table is not None and not table.formed:
            await table.close("moved", leader)

    async def _reached(self, stage: Stage) -> None:
        self._marks[stage] = time.monotonic()
        await self._context.listener.reached(stage, self._head.outer_step)

    async def _sit(self, channel: Channel) -> None:
        self._inbox = asyncio.Queue()  # what came over an earlier channel, its end too, is not this leader's
        tasks = [asyncio.ensure_future(self._read(channel)), asyncio.ensure_future(self._speak(channel))]
        try:
            await self._yield_table(channel.remote)
            await self._reached(Stage.SEATED)
            group = await self._until_grouped(channel)
            await self._reached(Stage.GROUPED)
            try:
                await self._in_group(channel, group)
            except Moved as error:  # no correct leader sends its group away, and our contribution is used up
                raise RoundError("leader-malformed", channel.remote, "sent its group away") from error
        except WireError as error:
            raise RoundError("leader-gone", channel.remote, str(error)) from error
        finally:
            channel.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, channel: Channel) -> None:
        try:
            while True:
                message = await channel.hear(*FromLeader, silence=self._context.deadlines.silence)
                if isinstance(message, Call):
                    self.called.set()
                elif not isinstance(message, Alive):
                    await self._inbox.put(message)
                elif message.alone:
                    self._alone_at = time.monotonic()
                else:
                    self._rounds.absences.majority()
        except WireError as error:
            await self._inbox.put(error)

    async def _speak(self, channel: Channel) -> None:
        """Progress while we work, signs of life afterwards."""
        said = -1
        with contextlib.suppress(WireError):  # the reader notices too, and it decides
            while True:
                if not self.work.done() and self._examples != said:
                    said = self._examples
                    await channel.send(Progress(examples=said))
                    pause = _PROGRESS_SECONDS
                else:
                    await channel.send(Alive())
                    pause = self._context.deadlines.alive if self.work.done() else _PROGRESS_SECONDS
                await asyncio.sleep(pause)

    async def _next(self, timeout: float | None = None) -> Message:
        """The leader's next message. Aborted, Refused and a broken stream are raised."""
        try:
            message = await within(self._inbox.get(), timeout)
        except asyncio.TimeoutError:
            raise RoundError("leader-deadline", self._leader) from None
        if isinstance(message, WireError):
            raise message
        if isinstance(message, Aborted):
            self._aborted(message.culprits)
            raise RoundError(message.reason)
        if isinstance(message, Refused):
            if message.reason in ("moved", "over"):
                raise Moved(message.leader)
            raise RoundError(message.reason)
        return message

    def _aborted(self, culprits: Sequence[PeerId]) -> None:
        """Those whom the leader names stay away for a while, and another leads.

        A leader that names more than half of the group is not believed, and stays away itself.
        """
        assert self._leader is not None
        self._rounds.absences.demote(self._leader)
        named = {self._leader} if 2 * len(culprits) > self._group_size else set(culprits)
        for culprit in named - {self._context.peer_id}:
            self._rounds.absences.bench(culprit)

    # -- until there is a group ------------------------------------------------------------------------------

    async def _until_grouped(self, channel: Channel) -> Group:
        waiting: set[asyncio.Future[Any]] = set()
        message = asyncio.ensure_future(self._next())
        try:
            waiting = {message, self.work}
            while True:
                await asyncio.wait(waiting, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                if self.work in waiting and self.work.done():
                    waiting.discard(self.work)
                    await self._say_ready(channel)
                if message.done():
                    received = message.result()
                    if not isinstance(received, Group) or self._local is None:
                        raise RoundError("leader-malformed", channel.remote)
                    self._check_group(channel.remote, received)
                    await channel.send(Promised())
                    return received
                self._check_patience(channel.remote)
        finally:
            message.cancel()
            await asyncio.gather(message, return_exceptions=True)

    async def _say_ready(self, channel: Channel) -> None:
        if self._local is None:  # else we were ready at another table already
            self._local = await self._gated(self.work.result())
        await self._reached(Stage.READY)
        promised, accepted = self._rounds.promised, self._rounds.accepted
        rates = self._rounds.observed.told(self._rounds.neighbours)
        vote = accepted[0] if accepted else None
        await channel.send(Ready(examples=self._local.examples, promised=promised, accepted=vote, rates=rates))

    async def _gated(self, local: LocalResult) -> LocalResult:
        """Our contribution, or one of weight 0 in place of one that the others would have to refuse."""
        context = self._context
        reason = check_shape(local.contribution, context.parameters)
        reason = reason or check_weight(local.examples, context.max_examples)
        reason = reason or await self._loop.run_in_executor(context.workers, context.check, local.contribution)
        if not reason:
            return local
        context.listener.refused(context.peer_id, reason)
        return replace(local, contribution=torch.zeros(context.parameters), examples=0)

    def _check_patience(self, leader: PeerId) -> None:
        """A leader that has a majority forms the group in time; one that never has leads no longer than that lasts."""
        ready_at = self._marks.get(Stage.READY)
        if ready_at is None:
            return
        now, terms = time.monotonic(), self._context.terms
        longest = longest_assembly(terms) + 2 * self._context.deadlines.silence
        if now > max(ready_at, self._alone_at) + longest:
            raise RoundError("leader-deadline", leader)
        if now > ready_at + terms.isolation_seconds + longest:
            self._rounds.absences.demote(leader)  # ourselves, too: somebody else may find a majority
            raise Moved(None)

    def _check_group(self, leader: PeerId, group: Group) -> None:
        """A group that a correct leader could have formed, in a ballot above what we promised; promises it."""
        context, promised, local = self._context, self._rounds.promised, self._local
        ids = [member.peer_id for member in group.members]
        ours = [member for member in group.members if member.peer_id == context.peer_id]
        lengths = {member.peer_id: member.values for member in group.members}
        reachable = {member.peer_id for member in group.members if member.maddrs}
        finish = group.finish
        if (
            group.ballot.leader != leader
            or (promised is not None and group.ballot.key() <= promised.key())
            or check_ballot(group.ballot, promised)
            or ids != sorted(set(ids))
            or not well_cut(lengths, reachable, context.parameters)  # what we have to hold of others is bounded
            or [member.examples for member in ours] != [local.examples if local else None]
            or [member.maddrs for member in ours] != [list(context.network.maddrs)]
            or len(ids) > context.terms.max_group_size
            or (finish is not None and check_finish(finish, self._head, context.run_id, context.max_examples))
        ):
            raise RoundError("leader-malformed", leader)
        for member in group.members:
            reason = check_weight(member.examples, context.max_examples)
            if reason:
                context.listener.refused(member.peer_id, reason)
                raise RoundError("leader-malformed", leader, f"{member.peer_id} has an absurd weight")
        self._rounds.promised = group.ballot
        self._group_size = len(ids)

    # -- in the group ----------------------------------------------------------------------------------------

    async def _in_group(self, channel: Channel, group: Group) -> None:
        proposal = Proposal(self._rounds, channel, group, self._next, self._reached)
        try:
            if group.finish is not None:
                link, pending = group.finish, await proposal.finish(group.finish)
            else:
                assert self._local is not None  # whoever is not ready is in no group
                link, pending = await proposal.make(self._local)
        except RoundError as error:
            if error.culprit is None:
                raise  # it came from the leader
            await proposal.give_up(error)
            if error.culprit != self._leader or not error.reason.startswith("leader-"):
                await self._outcome(proposal, None)
            raise
        finally:
            self._refused, self._codec_seconds = proposal.refused, proposal.codec_seconds
        self._residual = self._rounds.residual = proposal.residual
        self._rounds.accepted = (Accepted(ballot=group.ballot, link=link), pending)
        vote = Vote.sign(self._context.identity, group.ballot, link)
        await channel.send(Voted(link=link, vote=vote))
        await self._reached(Stage.VOTED)
        certificate = await self._outcome(proposal, link)
        self._rounds.commit(pending, certificate)
        self._counted = link.participants.get(self._context.peer_id, 0) > 0
        await self._reached(Stage.COMMITTED)

    async def _outcome(self, proposal: Proposal, link: Link | None) -> Certificate:
        """Waits for the commit. Raises RoundError: the abort, or "behind" when others committed what we lack."""
        deadlines = self._context.deadlines
        timeout = deadlines.exchange + deadlines.commit + 2 * deadlines.silence
        certificate = proposal.certificate
        while certificate is None:
            message = await self._next(timeout)
            if isinstance(message, Committed):
                certificate = message.certificate
        if link is None or certificate.link.hash() != link.hash():
            raise RoundError("behind")
        try:
            check_step(self._head, self._previous, certificate)
        except HistoryError as error:
            raise RoundError("leader-malformed", self._leader, str(error)) from error
        return certificate
