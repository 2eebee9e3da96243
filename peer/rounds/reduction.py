"""The reducer's side of one exchange: take everyone's values for our part, compute their mean, give it to everyone.

The mean of a chunk is computed and sent as soon as everyone's values for it are here, in the hope that all of them
will count, so that both directions of the link are busy at once. Where the verdict leaves somebody out, the mean is
computed again and sent again; nobody holds a mean to be complete before the verdict.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from functools import partial

import torch

from peer.rounds.codec import CodecError
from peer.rounds.context import Context
from peer.rounds.gates import check_values, square_norm
from peer.rounds.messages import Again, Chunk, Denied, MeanChunk, MeanEnd, Part
from peer.rounds.partition import chunks
from peer.rounds.verdict import Report
from peer.rounds.workshop import Workshop
from swarm.deadline import within
from swarm.identity import PeerId
from swarm.wire import Channel, WireError


class Edition:
    """The encoded mean of our part over certain peers: each chunk as soon as it is there, or None when it is void.

    residual: where it is to be told, what the encoded mean lacks, float32 [part], else None.
    """

    def __init__(self, count: int, residual: torch.Tensor | None) -> None:
        loop = asyncio.get_running_loop()
        self.chunks: list[asyncio.Future[bytes | None]] = [loop.create_future() for _ in range(count)]
        self.norm: asyncio.Future[float | None] = loop.create_future()
        self.residual = residual

    def void(self) -> None:
        """Another edition takes its place."""
        for chunk in self.chunks:
            if not chunk.done():
                chunk.set_result(None)
        if not self.norm.done():
            self.norm.set_result(None)

    def end(self) -> None:
        """The exchange was abandoned."""
        for chunk in self.chunks:
            chunk.cancel()
        self.norm.cancel()


class Reduction:
    """Our part of one exchange. A peer that reduces nothing has a part of no values.

    Holds what the members sent for our part, encoded, and the encoded mean.
    """

    def __init__(
        self, context: Context, workshop: Workshop, weights: Mapping[PeerId, int], length: int, deadline: float
    ):
        self.report: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
        self._context, self._workshop, self._weights, self._deadline = context, workshop, weights, deadline
        self._length = length
        self._chunks = chunks(slice(0, length))
        self._received: dict[PeerId, list[bytes]] = {}
        self._norms: dict[PeerId, float] = {}
        self._refused: dict[PeerId, str] = {}
        self._contributors = [peer for peer, examples in sorted(weights.items()) if examples]
        self._lacking = [len(self._contributors)] * len(self._chunks)
        self._whole = [asyncio.Event() for _ in self._chunks]
        self._confirmed = asyncio.Event()
        self._edition = self._new_edition()
        self._ahead: asyncio.Task[None] | None = None
        if self._contributors:
            self._ahead = context.spawn(self._reduce(self._edition, self._contributors))
        else:
            self.report.set_result(Report({}, {}))  # nobody to wait for

    def _new_edition(self) -> Edition:
        return Edition(len(self._chunks), torch.empty(self._length) if self._context.residual else None)

    def take_residual(self) -> torch.Tensor | None:
        """Where it is to be told, what the encoded mean of our part lacks, float32 [part]; else None. Once."""
        residual, self._edition.residual = self._edition.residual, None
        return residual

    # -- what members send -----------------------------------------------------------------------------------

    async def collect_until_deadline(self) -> Report:
        """Waits for every member's contribution to our part, and gives up on those that are late."""
        with contextlib.suppress(asyncio.TimeoutError):
            await within(asyncio.shield(self.report), self._remaining())
        for peer in self._waiting():
            self._settle(peer, "deadline")
        return self.report.result()

    def _waiting(self) -> list[PeerId]:
        return [peer for peer in self._contributors if peer not in self._norms and peer not in self._refused]

    def _remaining(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _settle(self, sender: PeerId, reason: str) -> None:
        if reason and sender not in self._refused:
            self._refused[sender] = reason
            self._norms.pop(sender, None)
            self._received.pop(sender, None)
            if sender in self._contributors and not self._confirmed.is_set():  # the hope is gone
                self._begin_again()
            self._context.listener.refused(sender, reason)
        if not self._waiting() and not self.report.done():
            self.report.set_result(Report(dict(self._refused), dict(self._norms)))

    async def accept(self, channel: Channel, part: Part) -> None:
        """Serves one member's stream: takes its contribution and returns the mean, both at once."""
        sender = channel.remote
        reason = self._check(sender, part)
        returning = None if reason else asyncio.ensure_future(self._return_mean(channel))
        try:
            if not reason and part.examples:
                reason = await self._take(channel, sender)
            if reason in ("gone", "deadline"):
                channel.close()  # it is behind, and should not wait for a mean
            elif reason and reason != "non-finite":  # the stream is no longer where both ends think it is
                await _end(returning)
                with contextlib.suppress(WireError):
                    await channel.send(Denied(reason=reason))
            elif returning is not None:
                await returning
        finally:
            await _end(returning)

    def _check(self, sender: PeerId, part: Part) -> str:
        if sender not in self._weights:
            reason = "stranger"
        elif sender in self._received or sender in self._norms or sender in self._refused:
            reason = "replay"
        elif part.examples != self._weights[sender]:
            reason = "weight"
        elif part.values != self._length:
            reason = "shape"
        else:
            return ""
        if reason in ("stranger", "replay"):  # says nothing about the contribution that counts
            self._context.listener.refused(sender, reason)
        else:
            self._settle(sender, reason)
        return reason

    async def _take(self, channel: Channel, sender: PeerId) -> str:
        received = self._received[sender] = []
        norm, reason = 0.0, ""
        try:
            for index, chunk in enumerate(self._chunks):
                message, payload = await channel.receive(Chunk, timeout=self._remaining())
                if message.index != index:
                    raise WireError("malformed", f"chunk {message.index} where {index} was due")
                self._workshop.flows.arrived(sender, len(payload), time.monotonic())
                bad, square = await self._inspect(payload, chunk.stop - chunk.start)
                reason, norm = reason or bad, norm + square
                received.append(payload)
                if not reason:
                    self._arrived(index)
        except WireError as error:
            reason = error.reason
        except CodecError:
            reason = "shape"
        if not reason and sender not in self._refused:
            self._norms[sender] = norm
        self._settle(sender, reason)
        return reason

    async def _inspect(self, payload: bytes, count: int) -> tuple[str, float]:
        """The reason to refuse encoded values, or "", and their squared norm. Raises CodecError."""

        def inspect() -> tuple[str, float]:
            values = self._context.codec.decode(payload, count)
            return check_values(values), square_norm(values)

        return await self._workshop.work(inspect)

    def _arrived(self, index: int) -> None:
        self._lacking[index] -= 1
        if not self._lacking[index]:
            self._whole[index].set()

    # -- the mean --------------------------------------------------------------------------------------------

    def lacks(self, peers: Sequence[PeerId]) -> list[PeerId]:
        """Those of ``peers`` whose contributions should be here and are not, whole and accepted."""
        return [peer for peer in peers if self._weights.get(peer) and peer not in self._norms]

    def include(self, peers: Sequence[PeerId]) -> None:
        """The verdict, for one who lacks none of them: the mean is over these."""
        counted = [peer for peer in peers if self._weights[peer]]
        self._confirmed.set()
        if self._ahead is not None and counted != self._contributors:
            self._begin_again()
        if self._ahead is None:
            self._context.spawn(self._reduce(self._edition, counted))

    def _begin_again(self) -> None:
        """What was sent of the mean is void; what it is over, the verdict says."""
        if self._ahead is None:
            return  # so it is already
        self._ahead.cancel()
        self._ahead = None
        void, self._edition = self._edition, self._new_edition()
        void.void()

    async def _reduce(self, edition: Edition, peers: Sequence[PeerId]) -> None:
        """Computes and encodes the mean over ``peers``, chunk by chunk, for whoever waits in ``_return_mean``."""
        total, norm = sum(self._weights[peer] for peer in peers), 0.0
        for index in range(len(self._chunks)):
            if not self._confirmed.is_set():
                await self._whole[index].wait()
            encoded = [(self._weights[peer], self._received[peer][index]) for peer in peers]
            payload, square = await self._workshop.work(partial(self._mean, edition, index, encoded, total))
            norm += square
            if edition.norm.done():  # the attempt was abandoned, or the edition is void
                return
            edition.chunks[index].set_result(payload)
        await self._confirmed.wait()
        if not edition.norm.done():
            edition.norm.set_result(norm)
        self._received.clear()  # late members may still fetch the mean, for which the exchange is kept

    def _mean(
        self, edition: Edition, index: int, encoded: Sequence[tuple[int, bytes]], total: int
    ) -> tuple[bytes, float]:
        """One encoded chunk of the mean and the squared norm of what it decodes to."""
        codec, chunk = self._context.codec, self._chunks[index]
        mean = torch.zeros(chunk.stop - chunk.start, dtype=torch.float64)
        for weight, payload in encoded:
            # in the order of peer ids: a float32 times a weight below 2**29 is exact in float64
            mean.add_(codec.decode(payload, len(mean)), alpha=weight)
        values = (mean / total).float()
        payload = codec.for_mean.encode(values)
        decoded = codec.for_mean.decode(payload, len(values))
        if edition.residual is not None:
            edition.residual[chunk] = values - decoded
        return payload, square_norm(decoded)

    async def _return_mean(self, channel: Channel) -> None:
        try:
            await within(self._send_mean(channel), self._remaining() + 2 * self._context.deadlines.commit)
        except (asyncio.TimeoutError, WireError):
            channel.close()
        except asyncio.CancelledError:
            if not self._edition.norm.cancelled():  # else the attempt was abandoned, not we
                raise
            channel.close()

    async def _send_mean(self, channel: Channel) -> None:
        while True:
            edition, square = self._edition, None
            for index, ready in enumerate(edition.chunks):
                payload = await asyncio.shield(ready)
                if payload is None:
                    break
                await channel.send(MeanChunk(index=index), payload)
            else:
                square = await asyncio.shield(edition.norm)
            if square is not None:
                await channel.send(MeanEnd(square_norm=square))
                return
            await channel.send(Again())

    def abandon(self) -> None:
        """Nobody gets a mean any more."""
        if self._ahead is not None:
            self._ahead.cancel()
            self._ahead = None
        self._contributors = []
        self._received.clear()
        self._edition.end()


async def _end(task: asyncio.Future[None] | None) -> None:
    if task is not None and not task.done():
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
