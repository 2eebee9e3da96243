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
from peer.rounds.context import RoundError, compute
from peer.rounds.exchange import Exchange
from peer.rounds.gates import check_shape, check_weight
from peer.rounds.messages import (
    Aborted,
    Accepted,
    Alive,
    Call,
    Committed,
    Failed,
    Group,
    Include,
    Progress,
    Ready,
    Received,
    Refused,
    Voted,
)
from peer.rounds.seat import find_seat
from peer.rounds.verdict import OF_ALL_PARTS, check_ballot, check_finish
from peer.values import LocalResult, Pending, RoundResult, RoundTimes, Stage
from swarm.deadline import within
from swarm.history import Certificate, HistoryError, Link, Vote, check_step
from swarm.identity import PeerId
from swarm.wire import Channel, Message, WireError

if TYPE_CHECKING:
    from peer.rounds.rounds import Rounds

log = structlog.get_logger(__name__)

FromLeader = (Alive, Call, Group, Include, Committed, Aborted, Refused)
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
        self._certificate: Certificate | None = None
        self._leader: PeerId | None = None
        self._alone_at = 0.0
        self._marks: dict[Stage, float] = {}

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
        try:
            while True:
                channel = await find_seat(self._rounds, preferred)
                self._leader = channel.remote
                await self._yield_table(channel.remote)
                try:
                    await self._sit(channel)
                except Moved as moved:
                    preferred = moved.leader
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
            times=RoundTimes(
                group=between(Stage.READY, Stage.GROUPED),
                exchange=between(Stage.GROUPED, Stage.GATHERED),
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
            await self._reached(Stage.SEATED)
            group = await self._until_grouped(channel)
            await self._reached(Stage.GROUPED)
            await self._in_group(channel, group)
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
                message, _ = await channel.receive(*FromLeader, timeout=self._context.deadlines.silence)
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
            raise RoundError("leader-deadline") from None
        if isinstance(message, WireError):
            raise message
        if isinstance(message, Aborted):
            self._bench(message.culprits)
            raise RoundError(message.reason)
        if isinstance(message, Refused):
            if message.reason in ("moved", "over"):
                raise Moved(message.leader)
            raise RoundError(message.reason)
        return message

    def _bench(self, culprits: Sequence[PeerId]) -> None:
        """Those the leader names stay away for a while; it too where it names more than half of the group."""
        named = {*culprits, self._leader} if 2 * len(culprits) > self._group_size else set(culprits)
        for culprit in named - {self._context.peer_id}:
            if culprit is not None:
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
                    self._local = await self._gated(self.work.result())
                    await self._reached(Stage.READY)
                    promised, accepted = self._rounds.promised, self._rounds.accepted
                    await channel.send(
                        Ready(
                            examples=self._local.examples,
                            promised=promised,
                            accepted=accepted[0] if accepted else None,
                        )
                    )
                if message.done():
                    received = message.result()
                    if not isinstance(received, Group) or self._local is None:
                        raise RoundError("leader-malformed", channel.remote)
                    self._check_group(channel.remote, received)
                    return received
                if self._kept_waiting():
                    raise RoundError("leader-deadline", channel.remote)
        finally:
            message.cancel()
            await asyncio.gather(message, return_exceptions=True)

    async def _gated(self, local: LocalResult) -> LocalResult:
        """Our contribution, or one of weight 0 in place of one that the others would have to refuse."""
        context = self._context
        reason = check_shape(local.contribution, context.parameters)
        reason = reason or check_weight(local.examples, context.max_examples)
        reason = reason or await compute(lambda: context.check(local.contribution))
        if not reason:
            return local
        context.listener.refused(context.peer_id, reason)
        return replace(local, contribution=torch.zeros(context.parameters), examples=0)

    def _kept_waiting(self) -> bool:
        """Whether we are ready and the leader has had a majority for longer than it takes to form a group."""
        ready_at = self._marks.get(Stage.READY)
        if ready_at is None:
            return False
        patience = longest_assembly(self._context.terms) + 2 * self._context.deadlines.silence
        return time.monotonic() > max(ready_at, self._alone_at) + patience

    def _check_group(self, leader: PeerId, group: Group) -> None:
        """A group that a correct leader could have formed, in a ballot above what we promised; promises it."""
        context, promised, local = self._context, self._rounds.promised, self._local
        ids = [member.peer_id for member in group.members]
        ours = [member for member in group.members if member.peer_id == context.peer_id]
        finish = group.finish
        if (
            group.ballot.leader != leader
            or (promised is not None and group.ballot.key() <= promised.key())
            or check_ballot(group.ballot, promised)
            or ids != sorted(set(ids))
            or not any(member.reducer for member in group.members)
            or [member.examples for member in ours] != [local.examples if local else None]
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
        link: Link | None = None
        try:
            if group.finish is not None:
                link, pending = group.finish, await self._finish(group, group.finish)
            else:
                link, pending = await self._make(channel, group)
        except RoundError as error:
            if error.culprit is None and error.reason != "fetch":
                raise  # it came from the leader
            await self._give_up(channel, error)
            await self._outcome(None)
            raise
        self._rounds.accepted = (Accepted(ballot=group.ballot, link=link), pending)
        vote = Vote.sign(self._context.identity, group.ballot, link)
        await channel.send(Voted(link=link, vote=vote))
        await self._reached(Stage.VOTED)
        certificate = await self._outcome(link)
        self._rounds.commit(pending, certificate)
        await self._reached(Stage.COMMITTED)

    async def _outcome(self, link: Link | None) -> Certificate:
        """Waits for the commit. Raises RoundError: the abort, or "behind" when others committed what we lack."""
        deadlines = self._context.deadlines
        timeout = deadlines.exchange + deadlines.commit + 2 * deadlines.silence
        while self._certificate is None:
            message = await self._next(timeout)
            if isinstance(message, Committed):
                self._certificate = message.certificate
        if link is None or self._certificate.link.hash() != link.hash():
            raise RoundError("behind")
        try:
            check_step(self._head, self._previous, self._certificate)
        except HistoryError as error:
            raise RoundError("leader-malformed", self._leader, str(error)) from error
        return self._certificate

    async def _finish(self, group: Group, link: Link) -> Pending:
        """The state of a link that an earlier ballot left unfinished."""
        accepted = self._rounds.accepted
        if accepted is not None and accepted[0].link.hash() == link.hash():
            return accepted[1]
        log.info("completing an earlier ballot", outer_step=link.outer_step, donors=group.donors)
        donors = [peer for peer in group.donors if peer != self._context.peer_id]
        try:
            return await within(self._context.ledger.fetch(link, donors), self._context.deadlines.commit)
        except (WireError, asyncio.TimeoutError) as error:
            raise RoundError("fetch", None, repr(error)) from error

    async def _make(self, channel: Channel, group: Group) -> tuple[Link, Pending]:
        """Exchanges contributions and computes the next state."""
        assert self._local is not None  # whoever is not ready is in no group
        exchange = Exchange(self._context, self._head.outer_step, group, self._local.contribution)
        self._rounds.register(exchange)
        try:
            await self._rounds.connect(group)
            mean, square_norm, included = await self._trade(channel, exchange, group)
        except BaseException:
            exchange.abandon()
            raise
        pending = await self._context.ledger.propose(mean, square_norm)
        weights = {member.peer_id: member.examples for member in group.members}
        participants = {peer: weights[peer] for peer in included}
        return Link(
            run_id=self._context.run_id,
            outer_step=self._head.outer_step + 1,
            previous=self._head.digest,
            digest=pending.digest,
            participants=participants,
            work=self._head.work + sum(participants.values()),
            isolated=group.isolated,
        ), pending

    async def _give_up(self, channel: Channel, error: RoundError) -> None:
        await channel.send(Failed(reason=error.reason, culprit=error.culprit))

    async def _trade(self, channel: Channel, exchange: Exchange, group: Group) -> tuple[Any, float, list[PeerId]]:
        """Runs the exchange while the leader's messages are heard.

        Who cannot get the mean is still a reducer for the others, until the leader says how it ended: one failure
        must not look like many.
        """
        included: list[PeerId] = []
        mean: tuple[Any, float] | None = None
        trade: asyncio.Future[tuple[Any, float]] | None = asyncio.ensure_future(exchange.trade())
        reducing = any(member.peer_id == self._context.peer_id and member.reducer for member in group.members)
        collect = asyncio.ensure_future(exchange.collect_until_deadline()) if reducing else None
        message = asyncio.ensure_future(self._next())
        deadlines = self._context.deadlines
        deadline = time.monotonic() + deadlines.exchange + deadlines.commit + 2 * deadlines.silence
        try:
            while True:
                waiting = {task for task in (trade, collect, message) if task is not None}
                timeout = max(0.0, deadline - time.monotonic())
                done, _ = await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    raise RoundError("leader-deadline", channel.remote)
                if collect is not None and collect.done():
                    report = collect.result()
                    collect = None
                    await self._reached(Stage.RECEIVED)
                    await channel.send(Received(refused=dict(report.refused), square_norms=dict(report.square_norms)))
                if message.done():
                    received = message.result()
                    if isinstance(received, Include):
                        if included:
                            raise RoundError("leader-malformed", channel.remote, "a second verdict")
                        included = exchange.include(received.peers)
                        self._refused = received.refused
                        for peer, reason in received.refused.items():
                            if reason in OF_ALL_PARTS:  # the others were counted where they were refused
                                self._context.listener.refused(peer, reason)
                        await self._reached(Stage.INCLUDED)
                    elif isinstance(received, Committed):
                        self._certificate = received.certificate
                    message = asyncio.ensure_future(self._next())
                if trade is not None and trade.done():
                    failure = trade.exception()
                    if failure is None:
                        mean = trade.result()
                        self._marks[Stage.GATHERED] = time.monotonic()
                    elif isinstance(failure, RoundError):
                        await self._give_up(channel, failure)
                    else:
                        raise failure
                    trade = None
                if self._certificate is not None and trade is None and mean is None:
                    raise RoundError("behind")  # the others have committed what we could not get
                if mean is not None and included:  # the mean may overtake the verdict, which is another's message
                    return *mean, included
        finally:
            rest = [task for task in (trade, collect, message) if task is not None]
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
