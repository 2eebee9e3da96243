"""From a group to a link: exchange contributions, or complete what an earlier ballot left unfinished."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import structlog

from peer.rounds.bandwidth import is_timed
from peer.rounds.context import RoundError
from peer.rounds.exchange import Exchange, Mean
from peer.rounds.messages import Committed, Failed, Group, Include, Proceed, Received
from peer.rounds.verdict import OF_ALL_PARTS, Report
from peer.values import LocalResult, Pending, Stage
from swarm.deadline import within
from swarm.history import Certificate, Link
from swarm.identity import PeerId
from swarm.wire import Channel, Message, WireError

if TYPE_CHECKING:
    import torch

    from peer.rounds.rounds import Rounds

log = structlog.get_logger(__name__)


class Proposal:
    """One member's work in one group.

    hear: the leader's next message. reached: told of the stages. refused: whose contribution does not count, and
    why. certificate: of what the others committed before we were done. residual: where it is to be told, what of our
    contribution counts only when we bring it again. codec_seconds: spent on values in the exchange.
    """

    def __init__(
        self,
        rounds: Rounds,
        channel: Channel,
        group: Group,
        hear: Callable[[], Awaitable[Message]],
        reached: Callable[[Stage], Awaitable[None]],
    ):
        self.refused: dict[PeerId, str] = {}
        self.certificate: Certificate | None = None
        self.residual: torch.Tensor | None = None
        self.codec_seconds = 0.0
        self._rounds, self._context, self._channel, self._group = rounds, rounds.context, channel, group
        self._hear, self._reached = hear, reached
        self._included: list[PeerId] = []
        self._mean: Mean | None = None

    async def give_up(self, error: RoundError) -> None:
        """Tells the leader that it gets no vote from us."""
        await self._channel.send(Failed(reason=error.reason, culprit=error.culprit))

    # -- a link of an earlier ballot -------------------------------------------------------------------------

    async def finish(self, link: Link) -> Pending:
        """The state of a link that an earlier ballot left unfinished, when it may be voted for.

        Raises RoundError: "fetch", or "leader-deadline".
        """
        pending, deadlines = await self._held_or_fetched(link), self._context.deadlines
        # A vote that no quorum's promises stand behind could be found again, in a higher ballot than the link that
        # the others committed meanwhile.
        try:
            while not isinstance(await within(self._hear(), deadlines.commit + 2 * deadlines.silence), Proceed):
                pass
        except asyncio.TimeoutError as error:
            raise RoundError("leader-deadline", self._channel.remote) from error
        return pending

    async def _held_or_fetched(self, link: Link) -> Pending:
        accepted = self._rounds.accepted
        if accepted is not None and accepted[0].link.hash() == link.hash():
            self.residual = self._rounds.residual
            return accepted[1]
        log.info("completing an earlier ballot", outer_step=link.outer_step, donors=self._group.donors)
        donors = [peer for peer in self._group.donors if peer != self._context.peer_id]
        try:
            return await within(self._context.ledger.fetch(link, donors), self._context.deadlines.commit)
        except (WireError, asyncio.TimeoutError) as error:
            raise RoundError("fetch", self._context.peer_id, repr(error)) from error

    # -- a link of our own -----------------------------------------------------------------------------------

    async def make(self, local: LocalResult) -> tuple[Link, Pending]:
        """Exchanges contributions and computes the next state. Raises RoundError, WireError: the leader is gone."""
        head, group = self._context.ledger.head, self._group
        exchange = Exchange(self._context, head.outer_step, group, local.contribution)
        self._rounds.register(exchange)
        try:
            await self._rounds.connect(group)
            mean = await self._trade(exchange)
        except BaseException:
            exchange.abandon()
            raise
        finally:
            if is_timed(exchange.outer_step):
                self._rounds.observed.learn(exchange.workshop.flows)
            self.codec_seconds = exchange.workshop.codec_seconds
        pending = await self._context.ledger.propose(mean.values, mean.square_norm)
        weights = {member.peer_id: member.examples for member in group.members}
        participants = {peer: weights[peer] for peer in self._included}
        if participants.get(self._context.peer_id):  # else nothing of ours was sent that counted
            self.residual = mean.residual
        return Link(
            run_id=self._context.run_id,
            outer_step=head.outer_step + 1,
            previous=head.digest,
            digest=pending.digest,
            participants=participants,
            work=head.work + sum(participants.values()),
            isolated=group.isolated,
        ), pending

    async def _trade(self, exchange: Exchange) -> Mean:
        """Runs the exchange while the leader's messages are heard.

        Who cannot get the mean is still a reducer for the others, until the leader says how it ended: one failure
        must not look like many.
        """
        deadlines = self._context.deadlines
        deadline = time.monotonic() + deadlines.exchange + deadlines.commit + 3 * deadlines.silence
        trade = asyncio.ensure_future(exchange.trade())
        reducing = any(member.peer_id == self._context.peer_id and member.reducer for member in self._group.members)
        collect = asyncio.ensure_future(exchange.collect_until_deadline()) if reducing else None
        message = asyncio.ensure_future(self._hear())
        waiting: set[asyncio.Future[Any]] = {trade, message} if collect is None else {trade, collect, message}
        try:
            while self._mean is None or not self._included:  # the mean may overtake the verdict, another's message
                if self.certificate is not None and trade not in waiting and self._mean is None:
                    raise RoundError("behind")  # the others have committed what we could not get
                left = max(0.0, deadline - time.monotonic())
                done, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    raise RoundError("leader-deadline", self._channel.remote)
                if collect in done and collect is not None:
                    await self._report(collect.result())
                if message in done:
                    await self._heed(exchange, message.result())
                    message = asyncio.ensure_future(self._hear())
                    waiting.add(message)
                if trade in done:
                    await self._traded(trade)
        finally:
            ends: list[asyncio.Future[Any]] = [one for one in (trade, collect, message) if one is not None]
            for one in ends:
                one.cancel()
            await asyncio.gather(*ends, return_exceptions=True)  # also of those that failed meanwhile
        return self._mean

    async def _report(self, report: Report) -> None:
        await self._reached(Stage.RECEIVED)
        await self._channel.send(Received(refused=dict(report.refused), square_norms=dict(report.square_norms)))

    async def _heed(self, exchange: Exchange, message: Message) -> None:
        if isinstance(message, Committed):
            self.certificate = message.certificate
        elif isinstance(message, Include):
            if self._included:
                raise RoundError("leader-malformed", self._channel.remote, "a second verdict")
            self._included = exchange.include(message.peers)
            self.refused = message.refused
            for peer, reason in message.refused.items():
                if reason in OF_ALL_PARTS:  # the others were counted where they were refused
                    self._context.listener.refused(peer, reason)
            await self._reached(Stage.INCLUDED)

    async def _traded(self, trade: asyncio.Future[Mean]) -> None:
        try:
            mean = trade.result()
        except RoundError as error:
            await self.give_up(error)
        else:
            await self._reached(Stage.GATHERED)
            self._mean = mean
