"""A donor: offers the committed state and sends the chunks that others want, while its own peer trains on.

A committed state is never modified, so whoever holds a reference serves a consistent snapshot. What that may cost is
bounded: so many uploads at once, so many bytes per second, and so many states that only uploads keep in memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog
import torch

from peer.layout import chunk_bytes, chunk_slices
from peer.state.messages import MAX_LINKS, Ask, Offer, Thanks, Unavailable, Values, Want
from peer.state.store import Store
from peer.state.welcome import Welcome
from peer.values import Pending
from swarm.deadline import within
from swarm.wire import StreamChannel, WireError

log = structlog.get_logger(__name__)

OPEN_SECONDS = 5.0
_OLD_STATES = 2
"""States that are no longer committed and stay in memory because somebody downloads them."""

_LATE_SECONDS = 0.1
"""Whoever comes back to send within this has not paused."""

Outcome = Callable[[str, str], None]
"""Called with "upload" or "download" and how it ended."""


class Pace:
    """At most ``rate`` bytes per second over all uploads together; no limit for 0."""

    def __init__(self, rate: int):
        self._rate = rate
        self._free_at = -_LATE_SECONDS

    async def take(self, count: int) -> None:
        """Waits until ``count`` more bytes may have left."""
        if self._rate:
            now = time.monotonic()
            await asyncio.sleep(self.due(count, now) - now)

    def due(self, count: int, now: float) -> float:
        """When that will be, seconds; every call takes its place in the line.

        The first chunk after a pause waits as well: no burst. Who is only a little late keeps its place, or the
        lateness of timers and sockets would add up, chunk after chunk.
        """
        begin = self._free_at if now - self._free_at < _LATE_SECONDS else now
        self._free_at = begin + count / self._rate
        return self._free_at


class Donor:
    """Serves STATE_PROTOCOL.

    Args:
        uploads: how many at once. rate: bytes per second, 0 without limit. chunk_seconds: how long a receiver may
            take to read a chunk, or to want the next.
    """

    def __init__(self, run_id: str, store: Store, outcome: Outcome, *, uploads: int, rate: int, chunk_seconds: float):
        self.welcome = Welcome()
        self._run_id, self._store, self._outcome = run_id, store, outcome
        self._chunk_seconds = chunk_seconds
        self._pace = Pace(rate)
        self._free = uploads
        self._serving: dict[StreamChannel, Pending] = {}

    async def serve(self, channel: StreamChannel) -> None:
        """Answers one stream until the other end has what it wants."""
        ask, _ = await channel.receive(Ask, timeout=OPEN_SECONDS)
        if self._free <= 0:
            await channel.send(Unavailable(reason="busy"))
            return
        self._free -= 1
        outcome, guest = "failed", ask.digest is None and ask.run_id == self._run_id
        try:
            if guest:
                self.welcome.arrive(channel.remote)
            sent = await self._converse(channel, ask)
            outcome = "ok"
        except (WireError, asyncio.TimeoutError) as error:
            log.debug("state upload failed", peer=channel.remote, why=repr(error))
            sent = False
        finally:
            self._free += 1
            self._serving.pop(channel, None)
            self.welcome.leave(channel.remote, served=outcome == "ok")
        if sent or outcome == "failed":
            self._outcome("upload", outcome)

    async def _converse(self, channel: StreamChannel, ask: Ask) -> bool:
        """Offers and sends until thanked; whether any chunk was sent."""
        sent = False
        message: Ask | Want | Thanks = ask
        while not isinstance(message, Thanks):
            if isinstance(message, Ask):
                await self._offer(channel, message)
            else:
                sent = True
                if not await self._send(channel, message.index):
                    return sent
            message, _ = await channel.receive(Ask, Want, Thanks, timeout=self._chunk_seconds)
        return sent

    async def _offer(self, channel: StreamChannel, ask: Ask) -> None:
        self._serving.pop(channel, None)
        store = self._store
        state = store.committed if ask.digest is None else self._find(ask.digest)
        reason = "run" if ask.run_id != self._run_id else "unknown" if state is None else ""
        if reason or state is None:
            await channel.send(Unavailable(reason=reason))
            return
        # Who stands beside us on another history may have as many steps: then the newest links are what it needs.
        chain = store.history.since(ask.since, MAX_LINKS) or store.history.since(0, MAX_LINKS)
        chain = [one for one in chain if one.link.outer_step <= state.outer_step] if state is store.committed else []
        self._serving[channel] = state
        await channel.send(Offer(outer_step=state.outer_step, digest=state.digest, chain=chain), state.hashes)

    def _find(self, digest: str) -> Pending | None:
        served = (state for state in self._serving.values() if state.digest == digest)
        return self._store.find(digest) or next(served, None)

    async def _send(self, channel: StreamChannel, index: int) -> bool:
        """Sends a chunk; False when the receiver was told that it comes too late."""
        state = self._serving.get(channel)
        vectors = [] if state is None else [state.parameters, *(state.slots[name] for name in self._store.slot_names)]
        slices = chunk_slices(self._store.layout.size)
        if state is None or not index < len(vectors) * len(slices):
            raise WireError("malformed", f"{channel.remote} wants chunk {index}, which was not offered")
        if self._too_old(state):
            await channel.send(Unavailable(reason="old"))
            return False
        vector, place = divmod(index, len(slices))
        values: torch.Tensor = vectors[vector][slices[place]]
        payload = chunk_bytes(values)
        await self._pace.take(len(payload))
        await within(channel.send(Values(index=index), payload), self._chunk_seconds)
        return True

    def _too_old(self, state: Pending) -> bool:
        """Whether memory is needed for newer states that are being downloaded and are no longer committed either."""
        kept = {self._store.committed.digest}
        old = {one.digest: one.outer_step for one in self._serving.values() if one.digest not in kept}
        newest = sorted(old, key=lambda digest: old[digest], reverse=True)[:_OLD_STATES]
        return state.digest in old and state.digest not in newest
