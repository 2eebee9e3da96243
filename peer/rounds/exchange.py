"""The all-reduce of one attempt: scatter contributions to the reducers, gather the mean.

Every reducer owns a part of the flat vector (butterfly all-reduce: Patarasuk and Yuan 2009). It takes that part of
every member's contribution through the gates, reports to the leader, and computes the weighted mean, which it encodes
**once** and sends to everyone, itself included (``reduction.py``). Both directions run at once, chunk by chunk.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from peer.rounds.bandwidth import is_timed
from peer.rounds.codec import CodecError
from peer.rounds.context import Context, RoundError
from peer.rounds.gates import check_values
from peer.rounds.lead import Lead
from peer.rounds.messages import PART_PROTOCOL, Again, Chunk, Denied, Group, MeanChunk, MeanEnd, Part
from peer.rounds.partition import chunks, partition
from peer.rounds.reduction import Reduction
from peer.rounds.verdict import Report
from peer.rounds.workshop import Workshop
from peer.values import Stage
from swarm.deadline import within
from swarm.identity import PeerId
from swarm.wire import Channel, LocalChannel, WireError

MOST_BROUGHT = 2
"""What the mean lacks is brought again as if our weight were at least the group's average over this."""


@dataclass(frozen=True)
class Mean:
    """What an exchange comes to.

    values: float32 [parameters], and square_norm of it: the same bits for every member. residual: where it is
    to be told, what of our contribution is not in it and is ours to bring again, float32 [parameters]; else None, and
    where we brought nothing.
    """

    values: torch.Tensor
    square_norm: float
    residual: torch.Tensor | None


def _until(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _heard(task: asyncio.Task[Any]) -> None:
    """Takes note of how a task ended: one failure was told already, and asyncio would complain of a second."""
    if not task.cancelled():
        task.exception()


class Exchange:
    """One peer's side of one exchange: as a member always, as a reducer unless in client mode.

    The contribution belongs to the exchange: the mean is written over it, part by part, so that beside it only the
    encoded values of our own part are held: members x parameters / reducers of them. Where the residual is to be told,
    there is one more vector.
    """

    def __init__(self, context: Context, outer_step: int, group: Group, contribution: torch.Tensor):
        self.outer_step, self.ballot = outer_step, group.ballot
        self.workshop = Workshop(context.workers)
        self._context = context
        self._vector = contribution
        # Not zeros: to touch so much memory in the event loop's thread takes seconds where cores are few. Every value
        # is written before its mean is here, by a peer that contributes.
        self._residual = torch.empty_like(contribution) if context.residual else None
        self._weights = {member.peer_id: member.examples for member in group.members}
        parts = partition([member.values for member in group.members])
        self._parts = {one.peer_id: part for one, part in zip(group.members, parts, strict=True) if one.reducer}
        deadlines = context.deadlines
        self._deadline = time.monotonic() + deadlines.exchange
        self._verdict = asyncio.Event()
        self._due = self._deadline + 2 * deadlines.silence  # the verdict; after it, the mean
        self._part = self._parts.get(context.peer_id, slice(0, 0))
        self._reduction = Reduction(
            context, self.workshop, self._weights, self._part.stop - self._part.start, self._deadline
        )
        self._unscattered = set(self._parts)
        self._encoded: dict[PeerId, int] = {}  # chunks of each part that are past needing our values
        lift_at = 0.0 if is_timed(outer_step) else time.monotonic() + deadlines.exchange / 3
        self._leads = {reducer: Lead(lift_at) for reducer in self._parts}
        self._progress = {reducer: asyncio.Event() for reducer in self._parts}
        self._total = 0
        self._trades: dict[asyncio.Task[float], PeerId] = {}

    # -- as a reducer ----------------------------------------------------------------------------------------

    async def collect_until_deadline(self) -> Report:
        """Waits for every member's contribution to our part, and gives up on those that are late."""
        return await self._reduction.collect_until_deadline()

    async def accept(self, channel: Channel, part: Part) -> None:
        """Serves one member's stream: takes its contribution, and returns the mean."""
        await self._reduction.accept(channel, part)

    def include(self, peers: Collection[PeerId]) -> list[PeerId]:
        """The verdict: whose contributions count. Returns the peers in order.

        Raises:
            RoundError: the leader counts somebody whose contribution is not here whole.
        """
        included = sorted(set(peers))
        lacking = [peer for peer in included if peer not in self._weights]
        reducing = self._context.peer_id in self._parts
        if reducing:
            lacking += self._reduction.lacks(included)
        if lacking or not any(self._weights[peer] for peer in included):
            raise RoundError("leader-malformed", self.ballot.leader, f"includes {lacking}")
        self._due = time.monotonic() + self._context.deadlines.commit
        self._total = sum(self._weights[peer] for peer in included)
        self._verdict.set()
        self._reduction.include(included)
        return included

    def abandon(self) -> None:
        """Ends everything that waits for this exchange."""
        for trade in self._trades:
            trade.cancel()
        self._reduction.abandon()
        self._vector, self._residual = torch.empty(0), None  # the exchange is kept for a while; this is not

    # -- as a member -----------------------------------------------------------------------------------------

    async def trade(self) -> Mean:
        """Scatters our contribution and gathers the mean.

        Raises:
            RoundError: a reducer failed; it is named. The other reducers still get our contribution, until
                ``abandon``: they are not to take us for one that hung up.
        """
        for reducer in self._parts:
            trade = self._context.spawn(self._trade(reducer))
            trade.add_done_callback(_heard)
            self._trades[trade] = reducer
        verdict = asyncio.ensure_future(self._verdict.wait())
        try:
            await self._all(verdict)  # no mean ends before its reducer has the verdict, but ours may come later
        finally:
            verdict.cancel()
        mean, self._vector = self._vector, torch.empty(0)  # the exchange is kept for those who are late; this is not
        residual = await self.workshop.work(self._left_over) if self._residual is not None else None
        return Mean(mean, sum(one.result() for one in self._trades), residual)

    def _left_over(self) -> torch.Tensor | None:
        """What we did not send, and in our own part also what the mean that we encoded lacks.

        Only we know that; brought again with our weight it moves the mean by as much (DoubleSqueeze, Tang et al.
        2019, where a server does so). But a peer that did little this time may do much the next.
        """
        residual, self._residual = self._residual, None
        ours, lacking = self._weights[self._context.peer_id], self._reduction.take_residual()
        if residual is None or not ours:
            return None
        if lacking is not None:
            share = min(self._total / ours, MOST_BROUGHT * len(self._weights))
            residual[self._part].add_(lacking, alpha=share)  # in place: a product of its own would take as much again
        return residual

    async def _all(self, verdict: asyncio.Future[Any]) -> None:
        """Waits for all trades: until the verdict is due, and then for as long as a mean may take."""
        pending: set[asyncio.Future[Any]] = set(self._trades)
        while pending:
            waiting = pending if verdict.done() else {*pending, verdict}
            done, _ = await asyncio.wait(waiting, timeout=_until(self._due), return_when=asyncio.FIRST_COMPLETED)
            if not done:
                raise self._late([reducer for trade, reducer in self._trades.items() if trade in pending])
            for one in done & pending:
                one.result()
            pending -= done

    def _late(self, reducers: list[PeerId]) -> RoundError:
        """Who is to blame when the means of ``reducers`` are not here in time."""
        if not self._verdict.is_set():
            return RoundError("leader-deadline", self.ballot.leader)
        ours = self._context.peer_id in reducers or 2 * len(reducers) > len(self._parts)  # or our own line is slow
        return RoundError("reducer-deadline", self._context.peer_id if ours else reducers[0])

    async def _trade(self, reducer: PeerId) -> float:
        """Scatters to and gathers from one reducer, both at once; the squared norm of its part of the mean."""
        channel: Channel | None = None
        both: list[asyncio.Task[Any]] = []
        try:
            channel = await self._open(reducer)
            scatter = within(self._scatter(channel, reducer), _until(self._deadline))
            both = [self._context.spawn(self._gather(channel, reducer)), self._context.spawn(scatter)]
            for one in both:
                one.add_done_callback(_heard)
            await asyncio.wait(both, return_when=asyncio.FIRST_EXCEPTION)
            for one in both:
                if one.done():
                    one.result()
            return float(both[0].result())
        except WireError as error:
            if reducer in self._unscattered and _until(self._deadline) <= self._context.deadlines.alive:
                raise RoundError("scatter-deadline", self._context.peer_id) from error  # it hung up on us
            raise RoundError(f"reducer-{error.reason}", reducer, str(error)) from error
        except CodecError as error:
            raise RoundError("reducer-shape", reducer, str(error)) from error
        except asyncio.TimeoutError as error:
            raise RoundError("scatter-deadline", self._context.peer_id) from error
        finally:
            for one in both:
                one.cancel()
            if channel is not None:
                channel.close()

    async def _open(self, reducer: PeerId) -> Channel:
        context, part = self._context, self._parts[reducer]
        header = Part(
            run_id=context.run_id, outer_step=self.outer_step, ballot=self.ballot,
            examples=self._weights[context.peer_id], values=part.stop - part.start,
        )  # fmt: skip
        if reducer == context.peer_id:
            ours, theirs = LocalChannel.pair(reducer)
            context.spawn(self._accept_own(theirs, header))
            return ours
        channel = await context.network.open(reducer, PART_PROTOCOL, "round", context.deadlines.seat)
        try:
            await channel.send(header)
        except BaseException:
            channel.close()
            raise
        return channel

    async def _accept_own(self, channel: Channel, header: Part) -> None:
        with contextlib.suppress(WireError):  # our other end knows
            await self.accept(channel, header)

    async def _scatter(self, channel: Channel, reducer: PeerId) -> None:
        if self._weights[self._context.peer_id]:
            for index, chunk in enumerate(chunks(self._parts[reducer])):
                payload = await self.workshop.work(partial(self._encode, chunk))
                self._encoded[reducer] = index + 1
                await self._turn(reducer, index, len(payload))
                await channel.send(Chunk(index=index), payload)
        self._unscattered.discard(reducer)
        if not self._unscattered:
            await self._context.listener.reached(Stage.SCATTERED, self.outer_step)

    async def _turn(self, reducer: PeerId, index: int, size_bytes: int) -> None:
        """Waits until a chunk does not run too far ahead of the mean."""
        lead, silence = self._leads[reducer], self._context.deadlines.silence
        while lead.too_far(index, size_bytes, time.monotonic()):
            self._progress[reducer].clear()
            left = min(silence, lead.lift_at - time.monotonic())
            try:
                await within(self._progress[reducer].wait(), max(0.0, left))
            except asyncio.TimeoutError:
                lead.lifted = True

    def _encode(self, chunk: slice) -> bytes:
        codec, values = self._context.codec, self._vector[chunk]
        payload = codec.encode(values)
        if self._residual is not None:
            self._residual[chunk] = values - codec.decode(payload, len(values))
        return payload

    async def _gather(self, channel: Channel, reducer: PeerId) -> float:
        while True:
            square_norm = await self._gather_edition(channel, reducer)
            if square_norm is not None:
                return square_norm

    async def _gather_edition(self, channel: Channel, reducer: PeerId) -> float | None:
        """One mean of a reducer's part, whole; its squared norm, or None where the reducer begins again."""
        parts, ours = chunks(self._parts[reducer]), self._weights[self._context.peer_id]
        for index in range(len(parts) + 1):
            message, payload = await channel.receive(
                MeanChunk, MeanEnd, Again, Denied, timeout=None
            )  # ``trade`` has one
            if isinstance(message, Denied):
                raise WireError("denied", message.reason)
            if isinstance(message, Again):
                self._leads[reducer].lifted = True  # the reducer needs all contributions first
                self._progress[reducer].set()
                return None
            if isinstance(message, MeanEnd) and index == len(parts):
                return message.square_norm
            if not isinstance(message, MeanChunk) or message.index != index or index == len(parts):
                raise WireError("malformed", "a chunk out of order")
            if ours and self._encoded.get(reducer, 0) <= index:
                raise WireError("malformed", "a mean without our values")  # which it would overwrite
            self._leads[reducer].came_back(index, len(payload), time.monotonic())
            self._progress[reducer].set()
            if await self.workshop.work(partial(self._decode, parts[index], payload)):
                raise WireError("malformed", "a mean that is not finite")
        return None

    def _decode(self, chunk: slice, payload: bytes) -> str:
        """Writes a chunk of the mean over our values; the reason not to take it, or ""."""
        target = self._vector[chunk]
        target.copy_(self._context.codec.for_mean.decode(payload, len(target)))
        return check_values(target)
