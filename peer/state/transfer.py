"""Passing the committed state from peer to peer, checked against the history that leads to it.

The donor offers the newest links of its chain and sends the state they end in. The receiver checks the links, sizes
and, at the end, the digest. Verified chunks from many donors at once are the next step; this is one donor at a time,
the next one when it fails.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
import structlog
import torch
from pydantic import Field

from peer.layout import state_digest
from peer.state.store import Store
from peer.values import Pending
from swarm.deadline import within
from swarm.history import Certificate, Digest, Head, HistoryError, Link, Step
from swarm.identity import PeerId
from swarm.network import Network
from swarm.wire import Channel, Message, StreamChannel, WireError

log = structlog.get_logger(__name__)

STATE_PROTOCOL = "/waggle/1/state"
CHUNK_VALUES = 1 << 18
_LINKS = 16
_UPLOADS = 2
_OPEN_SECONDS = 5.0
_THANKS_SECONDS = 1.0
_BUSY_SECONDS = 0.5  # before those who were busy are asked again


class Ask(Message):
    """Send me a state: the one called ``digest``, or your committed one, with the links after ``since``."""

    run_id: Annotated[str, Field(max_length=64)]
    since: Step
    digest: Digest | None = None


class Offer(Message):
    """What follows: ``values`` float32 values, parameters then slots, in chunks."""

    outer_step: Step
    digest: Digest
    chain: Annotated[list[Certificate], Field(max_length=_LINKS)]
    values: Annotated[int, Field(ge=0, lt=1 << 40)]


class Values(Message):
    """A chunk of the state, float32 little-endian, in the payload."""


class Unavailable(Message):
    """No such state here, or too many downloads already."""

    reason: Annotated[str, Field(max_length=32)]


Outcome = Callable[[str, str], None]
"""Called with "upload" or "download" and how it ended."""


class Transfer:
    """Serves this peer's state and downloads others'.

    chunk_seconds: how long the other side may take for one chunk, so that a slow one is told from a stalled one.
    """

    def __init__(self, run_id: str, store: Store, network: Network, outcome: Outcome, *, chunk_seconds: float = 20.0):
        self._run_id, self._store, self._network, self._outcome = run_id, store, network, outcome
        self._chunk_seconds = chunk_seconds
        self._uploads = asyncio.Semaphore(_UPLOADS)

    async def start(self) -> None:
        """Begins to serve."""
        await self._network.serve(STATE_PROTOCOL, "state", self._serve)

    # -- donor -----------------------------------------------------------------------------------------------

    async def _serve(self, channel: StreamChannel) -> None:
        ask, _ = await channel.receive(Ask, timeout=_OPEN_SECONDS)
        state = self._store.committed if ask.digest is None else self._store.find(ask.digest)
        history = self._store.history
        # Who stands beside us on another history may have as many steps: then the newest links are what it needs.
        chain = history.since(ask.since, _LINKS) or history.since(0, _LINKS)
        if state is not self._store.committed:
            chain = []
        reason = "run" if ask.run_id != self._run_id else "unknown" if state is None else ""
        if not reason and self._uploads.locked():
            reason = "busy"
        if reason or state is None:
            await channel.send(Unavailable(reason=reason))
            return
        async with self._uploads:
            try:
                await self._upload(channel, state, chain)
            except (WireError, asyncio.TimeoutError) as error:
                log.debug("state upload failed", peer=channel.remote, why=repr(error))
                self._outcome("upload", "failed")
            else:
                self._outcome("upload", "ok")

    async def _upload(self, channel: Channel, state: Pending, chain: list[Certificate]) -> None:
        vectors = [state.parameters, *(state.slots[name] for name in self._store.slot_names)]
        values = sum(vector.numel() for vector in vectors)
        await channel.send(Offer(outer_step=state.outer_step, digest=state.digest, chain=chain, values=values))
        for vector in vectors:
            for chunk in torch.split(vector, CHUNK_VALUES):
                payload = chunk.numpy().astype("<f4", copy=False).tobytes()
                await within(channel.send(Values(), payload), self._chunk_seconds)
        await channel.receive(Values, timeout=self._chunk_seconds)  # the receiver's thanks: only now may we hang up
        channel.close()

    # -- receiver --------------------------------------------------------------------------------------------

    async def fetch(self, link: Link, donors: Sequence[PeerId]) -> Pending:
        """The state that ``link`` makes. Raises WireError when no donor sends it; goes on while one is busy."""
        left = random.sample(list(donors), len(donors))
        while left:
            busy = []
            for donor in left:
                try:
                    state, _ = await self._download(donor, link.digest, None)
                except WireError as error:
                    log.warning("state download failed", donor=donor, why=str(error))
                    if error.reason == "busy":
                        busy.append(donor)
                else:
                    return state
            left = busy
            if left:
                await asyncio.sleep(_BUSY_SECONDS)
        raise WireError("fetch", f"none of {len(donors)} donors sent the state {link.digest[:16]}")

    async def catch_up(self, donors: Sequence[PeerId], better: Callable[[Head], bool]) -> PeerId | None:
        """Downloads and adopts a committed state whose head is ``better`` than ours.

        Returns:
            The donor, or None when none could give one.
        """
        shuffled = random.sample(list(donors), len(donors))  # so that newcomers do not all ask the same
        for donor in shuffled:
            try:
                state, chain = await self._download(donor, None, better)
                if not better(self._head(state.outer_step, state.digest, chain)):
                    raise WireError("stale", "ours is as good by now")
            except WireError as error:
                self._outcome("download", error.reason)
                log.warning("state download failed", donor=donor, why=str(error))
                continue
            self._store.adopt(state, chain)
            self._outcome("download", "ok")
            log.info("state downloaded", donor=donor, outer_step=state.outer_step, digest=state.digest[:16])
            return donor
        return None

    async def _download(
        self, donor: PeerId, digest: str | None, better: Callable[[Head], bool] | None
    ) -> tuple[Pending, list[Certificate]]:
        channel = await self._network.open(donor, STATE_PROTOCOL, "state", _OPEN_SECONDS)
        try:
            await channel.send(Ask(run_id=self._run_id, since=self._store.head.outer_step, digest=digest))
            offer, _ = await channel.receive(Offer, Unavailable, timeout=_OPEN_SECONDS)
            if isinstance(offer, Unavailable):
                raise WireError(offer.reason or "unknown")
            assert isinstance(offer, Offer)
            if digest is not None and offer.digest != digest:
                raise WireError("digest", "not the state that was asked for")
            if better is not None:
                self._check_offer(offer, better)
            state = await self._receive(channel, offer)
            await channel.send(Values())
            await channel.linger(_THANKS_SECONDS)
            return state, offer.chain
        finally:
            channel.close()

    def _check_offer(self, offer: Offer, better: Callable[[Head], bool]) -> None:
        """The links must lead to what is offered, and that must be worth having."""
        head = self._head(offer.outer_step, offer.digest, offer.chain)
        if not better(head):
            raise WireError("stale", f"step {head.outer_step} is no better than ours")

    def _head(self, outer_step: int, digest: str, chain: Sequence[Certificate]) -> Head:
        try:
            head = self._store.check(chain) if chain else Head(0, digest, 0)
        except HistoryError as error:
            raise WireError("history", str(error)) from error
        if (head.outer_step, head.digest) != (outer_step, digest):
            raise WireError("history", "the links lead elsewhere")
        return head

    async def _receive(self, channel: Channel, offer: Offer) -> Pending:
        names, size = self._store.slot_names, self._store.layout.size
        if offer.values != size * (1 + len(names)):
            raise WireError("shape", f"{offer.values} values where {size * (1 + len(names))} are due")
        vectors = [torch.empty(size) for _ in range(1 + len(names))]
        for vector in vectors:
            for chunk in torch.split(vector, CHUNK_VALUES):
                _, payload = await channel.receive(Values, timeout=self._chunk_seconds)
                if len(payload) != 4 * chunk.numel():
                    raise WireError("shape", f"a chunk of {len(payload)} bytes")
                chunk.copy_(torch.from_numpy(np.frombuffer(payload, dtype="<f4").astype(np.float32)))
        slots = dict(zip(names, vectors[1:], strict=True))

        def name() -> str:
            return state_digest(self._store.layout, offer.outer_step, vectors[0], slots)

        digest = await asyncio.get_running_loop().run_in_executor(None, name)
        if digest != offer.digest:
            raise WireError("digest", f"{channel.remote} sent {digest[:16]} as {offer.digest[:16]}")
        return Pending(offer.outer_step, vectors[0], slots, digest)
