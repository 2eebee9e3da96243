"""The all-reduce of one attempt: scatter contributions to the reducers, gather the mean.

Every reducer owns a part of the flat vector (butterfly all-reduce: Patarasuk and Yuan 2009). It takes that part of
every member's contribution through the gates, reports to the leader, and once told whose contributions count it
computes their weighted mean, encodes it **once**, and sends everyone, itself included, those same bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection
from typing import Any

import torch

from peer.rounds.codec import CodecError
from peer.rounds.context import Context, RoundError, compute
from peer.rounds.gates import check_values, square_norm
from peer.rounds.messages import PART_PROTOCOL, Chunk, Denied, Group, MeanEnd, Part
from peer.rounds.partition import chunks, partition
from peer.rounds.verdict import Report
from peer.values import Stage
from swarm.deadline import within
from swarm.identity import PeerId
from swarm.wire import Channel, LocalChannel, WireError


def _until(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _heard(task: asyncio.Task[Any]) -> None:
    """Takes note of how a task ended: one failure was told already, and asyncio would complain of a second."""
    if not task.cancelled():
        task.exception()


class Exchange:
    """One peer's side of one exchange: as a member always, as a reducer unless in client mode.

    Holds at most three float32 vectors of the parameters' size: the contribution, what the members sent for our
    part (members x parameters / reducers), and the mean.
    """

    def __init__(self, context: Context, outer_step: int, group: Group, contribution: torch.Tensor):
        self.outer_step, self.ballot = outer_step, group.ballot
        self.report: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
        self._context, self._group = context, group
        self._contribution = contribution
        self._weights = {member.peer_id: member.examples for member in group.members}
        self._reducers = [member.peer_id for member in group.members if member.reducer]
        self._parts = dict(zip(self._reducers, partition(contribution.numel(), len(self._reducers)), strict=True))
        deadlines = context.deadlines
        self._deadline = time.monotonic() + deadlines.exchange
        self._verdict = asyncio.Event()
        self._due = self._deadline + 2 * deadlines.silence  # the verdict; after it, the mean
        self._part = self._parts.get(context.peer_id, slice(0, 0))
        self._received: dict[PeerId, torch.Tensor] = {}
        self._norms: dict[PeerId, float] = {}
        self._refused: dict[PeerId, str] = {}
        self._mean_chunks: list[asyncio.Future[bytes]] = [
            asyncio.get_running_loop().create_future() for _ in chunks(self._part)
        ]
        self._mean_norm: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._unscattered = len(self._reducers)
        self._trades: dict[asyncio.Task[float], PeerId] = {}

    # -- as a reducer ----------------------------------------------------------------------------------------

    async def collect_until_deadline(self) -> Report:
        """Waits for every member's contribution to our part, and gives up on those that are late."""
        with contextlib.suppress(asyncio.TimeoutError):
            await within(asyncio.shield(self.report), max(0.0, self._deadline - time.monotonic()))
        for peer, examples in self._weights.items():
            if examples and peer not in self._norms and peer not in self._refused:
                self._settle(peer, "deadline")
        if not self.report.done():  # nobody has anything to contribute
            self.report.set_result(Report(self._refused, self._norms))
        return self.report.result()

    def _settle(self, sender: PeerId, reason: str) -> None:
        if reason and sender not in self._refused:
            self._refused[sender] = reason
            self._norms.pop(sender, None)
            self._received.pop(sender, None)
            self._context.listener.refused(sender, reason)
        waiting = [
            peer for peer, examples in self._weights.items()
            if examples and peer not in self._norms and peer not in self._refused
        ]  # fmt: skip
        if not waiting and not self.report.done():
            self.report.set_result(Report(dict(self._refused), dict(self._norms)))

    async def accept(self, channel: Channel, part: Part) -> None:
        """Serves one member's stream: takes its contribution, then returns the mean."""
        sender = channel.remote
        reason = self._check(sender, part)
        if not reason and part.examples:
            reason = await self._take(channel, sender)
        if reason in ("gone", "deadline"):
            channel.close()  # it is behind, and should not wait for a mean
            return
        if reason and reason != "non-finite":  # the stream is no longer where both ends think it is
            with contextlib.suppress(WireError):
                await channel.send(Denied(reason=reason))
            return
        await self._return_mean(channel)

    def _check(self, sender: PeerId, part: Part) -> str:
        if sender not in self._weights:
            reason = "stranger"
        elif sender in self._received or sender in self._norms or sender in self._refused:
            reason = "replay"
        elif part.examples != self._weights[sender]:
            reason = "weight"
        elif part.values != self._part.stop - self._part.start:
            reason = "shape"
        else:
            return ""
        if reason in ("stranger", "replay"):  # says nothing about the contribution that counts
            self._context.listener.refused(sender, reason)
        else:
            self._settle(sender, reason)
        return reason

    async def _take(self, channel: Channel, sender: PeerId) -> str:
        values = torch.empty(self._part.stop - self._part.start)
        self._received[sender] = values
        norm, reason = 0.0, ""
        try:
            for index, chunk in enumerate(chunks(slice(0, len(values)))):
                message, payload = await channel.receive(Chunk, timeout=self._remaining())
                if message.index != index:
                    raise WireError("malformed", f"chunk {message.index} where {index} was due")
                target = values[chunk]

                def decode(payload: bytes = payload, target: torch.Tensor = target) -> tuple[str, float]:
                    target.copy_(self._context.codec.decode(payload, len(target)))
                    return check_values(target), square_norm(target)

                bad, square = await compute(decode)
                reason, norm = reason or bad, norm + square
        except WireError as error:
            reason = error.reason
        except CodecError:
            reason = "shape"
        if not reason and sender not in self._refused:
            self._norms[sender] = norm
        self._settle(sender, reason)
        return reason

    def _remaining(self) -> float:
        return _until(self._deadline)

    def include(self, peers: Collection[PeerId]) -> list[PeerId]:
        """The verdict: whose contributions count. Starts the reduction; returns the peers in order.

        Raises:
            RoundError: the leader counts somebody whose contribution is not here whole.
        """
        included = sorted(set(peers))
        lacking = [peer for peer in included if peer not in self._weights]
        reducing = self._context.peer_id in self._parts
        if reducing:
            lacking += [peer for peer in included if self._weights.get(peer) and peer not in self._norms]
        if lacking or not any(self._weights[peer] for peer in included):
            raise RoundError("leader-malformed", self._group.ballot.leader, f"includes {lacking}")
        self._due = time.monotonic() + self._context.deadlines.commit
        self._verdict.set()
        if reducing:
            self._context.spawn(self._reduce(included))
        return included

    async def _reduce(self, peers: list[PeerId]) -> None:
        """Computes and encodes the mean, chunk by chunk, for whoever waits in ``_return_mean``."""
        weighted = [(self._weights[peer], self._received[peer]) for peer in peers if self._weights[peer]]
        total = sum(weight for weight, _ in weighted)
        codec, norm = self._context.codec, 0.0
        for index, chunk in enumerate(chunks(slice(0, self._part.stop - self._part.start))):

            def reduce(chunk: slice = chunk) -> tuple[bytes, float]:
                # float64, in the order of peer ids: a float32 times a weight below 2**29 is exact in it
                mean = torch.zeros(chunk.stop - chunk.start, dtype=torch.float64)
                for weight, values in weighted:
                    mean += values[chunk].double() * weight
                payload = codec.encode((mean / total).float())
                return payload, square_norm(codec.decode(payload, len(mean)))

            payload, square = await compute(reduce)
            norm += square
            if self._mean_norm.cancelled():
                return
            self._mean_chunks[index].set_result(payload)
        if not self._mean_norm.cancelled():
            self._mean_norm.set_result(norm)
        self._received.clear()  # late members may still fetch the mean, for which the exchange is kept

    async def _return_mean(self, channel: Channel) -> None:
        deadlines = self._context.deadlines

        async def send() -> None:
            for index, ready in enumerate(self._mean_chunks):
                await channel.send(Chunk(index=index), await asyncio.shield(ready))
            await channel.send(MeanEnd(square_norm=await asyncio.shield(self._mean_norm)))

        try:
            await within(send(), self._remaining() + 2 * deadlines.commit)
        except asyncio.TimeoutError:
            channel.close()
        except asyncio.CancelledError:
            channel.close()
            if not self._mean_norm.cancelled():  # else the attempt was abandoned, not we
                raise

    def abandon(self) -> None:
        """The attempt is over: whoever still waits for our contribution or our mean is let go."""
        for trade in self._trades:
            trade.cancel()
        self._contribution = torch.empty(0)
        self._received.clear()
        self.report.cancel()
        self._mean_norm.cancel()
        for future in self._mean_chunks:
            future.cancel()

    # -- as a member -----------------------------------------------------------------------------------------

    async def trade(self) -> tuple[torch.Tensor, float]:
        """Scatters our contribution and gathers the mean.

        Returns:
            The mean, float32 [parameters], and its squared norm: the same bits for every member.

        Raises:
            RoundError: a reducer failed; it is named. The other reducers still get our contribution, until
                ``abandon``: they are not to take us for one that hung up.
        """
        mean = torch.empty_like(self._contribution)
        for reducer in self._reducers:
            trade = self._context.spawn(self._trade(reducer, mean))
            trade.add_done_callback(_heard)
            self._trades[trade] = reducer
        verdict = asyncio.ensure_future(self._verdict.wait())
        try:
            await self._all(verdict)
        finally:
            verdict.cancel()
        self._contribution = torch.empty(0)  # the exchange is kept for those who are late; this is not
        return mean, sum(one.result() for one in self._trades)

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
            return RoundError("leader-deadline", self._group.ballot.leader)
        ours = self._context.peer_id in reducers or 2 * len(reducers) > len(self._reducers)  # or our own line is slow
        return RoundError("reducer-deadline", self._context.peer_id if ours else reducers[0])

    async def _trade(self, reducer: PeerId, mean: torch.Tensor) -> float:
        part = self._parts[reducer]
        channel: Channel | None = None
        scattered = False
        try:
            channel = await self._open(reducer)
            await within(self._scatter(channel, part), self._remaining())
            scattered = True
            self._unscattered -= 1
            if not self._unscattered:
                await self._context.listener.reached(Stage.SCATTERED, self.outer_step)
            return await self._gather(channel, part, mean)
        except WireError as error:
            if not scattered and self._remaining() <= self._context.deadlines.alive:
                raise RoundError("scatter-deadline", self._context.peer_id) from error  # it hung up on us
            raise RoundError(f"reducer-{error.reason}", reducer, str(error)) from error
        except CodecError as error:
            raise RoundError("reducer-shape", reducer, str(error)) from error
        except asyncio.TimeoutError as error:
            raise RoundError("scatter-deadline", self._context.peer_id) from error
        finally:
            if channel is not None:
                channel.close()

    async def _open(self, reducer: PeerId) -> Channel:
        context = self._context
        header = Part(
            run_id=context.run_id, outer_step=self.outer_step, ballot=self.ballot,
            examples=self._weights[context.peer_id], values=self._parts[reducer].stop - self._parts[reducer].start,
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

    async def _scatter(self, channel: Channel, part: slice) -> None:
        if not self._weights[self._context.peer_id]:
            return
        for index, chunk in enumerate(chunks(part)):
            values = self._contribution[chunk]
            payload = await compute(lambda values=values: self._context.codec.encode(values))  # type: ignore[misc]
            await channel.send(Chunk(index=index), payload)

    async def _gather(self, channel: Channel, part: slice, mean: torch.Tensor) -> float:
        for index, chunk in enumerate(chunks(part)):
            message, payload = await channel.receive(Chunk, Denied, timeout=None)  # ``trade`` has the deadline
            if isinstance(message, Denied):
                raise WireError("denied", message.reason)
            if not isinstance(message, Chunk) or message.index != index:
                raise WireError("malformed", "a chunk out of order")
            target = mean[chunk]

            def decode(payload: bytes = payload, target: torch.Tensor = target) -> str:
                target.copy_(self._context.codec.decode(payload, len(target)))
                return check_values(target)

            if await compute(decode):
                raise WireError("malformed", "a mean that is not finite")
        end, _ = await channel.receive(MeanEnd, timeout=None)
        return end.square_norm
