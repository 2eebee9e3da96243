"""Obtaining the committed state from peers: several are asked at once, and none is believed for its word.

The links of an offer must lead to it and enough peers must stand by it (``choice.py``); then all donors that have the
chosen state send chunks of it, each checked against the digest (``download.py``). One that is slow is overtaken, one
that is wrong or gone is left and named.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from peer.state.choice import Bid, choose
from peer.state.donor import OPEN_SECONDS, Donor, Outcome
from peer.state.download import Download, check_hashes
from peer.state.messages import STATE_PROTOCOL, Ask, Offer, Thanks, Unavailable, Values, Want
from peer.state.share import Share, overtaken
from peer.state.store import Store
from peer.values import Pending
from swarm.deadline import within
from swarm.history import Certificate, Head, HistoryError, Link
from swarm.identity import PeerId
from swarm.network import Network
from swarm.wire import StreamChannel, WireError

log = structlog.get_logger(__name__)

DONORS_AT_ONCE = 6
_WINDOW = 3  # chunks asked for ahead, so that a donor's line is not idle while we answer
_THANKS_SECONDS = 1.0
_BUSY_SECONDS = 0.5  # before those who were busy are asked again


@dataclass(frozen=True)
class Source:
    """A donor that waits to be asked for chunks of what it offered."""

    donor: PeerId
    channel: StreamChannel
    offer: Offer
    hashes: bytes


class Transfer:
    """Serves this peer's state (``donor``) and downloads others'.

    chunk_seconds: how long the other side may take for one chunk, so that a slow one is told from a stalled one.
    """

    def __init__(
        self,
        run_id: str,
        store: Store,
        network: Network,
        outcome: Outcome,
        *,
        uploads: int = 4,
        rate: int = 0,
        chunk_seconds: float = 20.0,
    ):
        self._run_id, self._store, self._network, self._outcome = run_id, store, network, outcome
        self._chunk_seconds = chunk_seconds
        self._unfinished: Download | None = None
        self.donor = Donor(run_id, store, outcome, uploads=uploads, rate=rate, chunk_seconds=chunk_seconds)

    async def start(self) -> None:
        """Begins to serve."""
        await self._network.serve(STATE_PROTOCOL, "state", self.donor.serve)

    async def fetch(self, link: Link, donors: Sequence[PeerId]) -> Pending:
        """The state that ``link`` makes. Raises WireError when no donor sends it; goes on while one is busy."""
        left = random.sample(list(donors), len(donors))
        while left:
            asked, left = left[:DONORS_AT_ONCE], left[DONORS_AT_ONCE:]
            sources, busy = await self._ask_all(asked, link.digest)
            state = await self._gather(sources, link.outer_step, link.digest)
            if state is not None:
                return state
            left += busy
            if busy:
                await asyncio.sleep(_BUSY_SECONDS)
        raise WireError("fetch", f"none of {len(donors)} donors sent the state {link.digest[:16]}")

    async def catch_up(
        self, donors: Sequence[PeerId], better: Callable[[Head], bool], claims: Mapping[PeerId, Head] | None = None
    ) -> bool:
        """Downloads and adopts a committed state whose head is ``better`` than ours; whether that worked.

        Args:
            claims: what the records of peers ahead of us say; they count for or against what donors offer.
        """
        asked = random.sample(list(donors), len(donors))[:DONORS_AT_ONCE]  # newcomers do not all ask the same
        sources, _ = await self._ask_all(asked, None)
        bids: dict[PeerId, Bid] = {}
        for source in list(sources):
            try:
                bids[source.donor] = self._bid(source, better)
            except WireError as error:
                sources.remove(source)
                self._drop(source, error)
        target = choose(list(bids.values()), claims or {})
        if target is None:
            for source in sources:
                self._drop(source, WireError("alone", "nobody else stands by what it offers"))
            return False
        chain = next(one.offer.chain for one in sources if bids[one.donor].head == target)
        sources = await self._agree(sources, target)
        state = await self._gather(sources, target.outer_step, target.digest)
        if state is None or not better(target):
            return False
        self._store.adopt(state, chain)
        self._outcome("download", "ok")
        log.info(
            "state downloaded", donors=[one.donor for one in sources], outer_step=target.outer_step,
            digest=target.digest[:16],
        )  # fmt: skip
        return True

    # -- asking ----------------------------------------------------------------------------------------------

    async def _ask_all(self, donors: Sequence[PeerId], digest: str | None) -> tuple[list[Source], list[PeerId]]:
        """Who offers something, and who is too busy to."""
        answers = await asyncio.gather(*(self._ask(donor, digest) for donor in donors), return_exceptions=True)
        sources, busy = [], []
        for donor, answer in zip(donors, answers, strict=True):
            if isinstance(answer, Source):
                sources.append(answer)
            elif isinstance(answer, WireError):
                self._outcome("download", answer.reason)
                log.warning("a donor does not help", donor=donor, why=str(answer))
                if answer.reason == "busy":
                    busy.append(donor)
            else:
                raise answer
        return sources, busy

    async def _ask(self, donor: PeerId, digest: str | None) -> Source:
        channel = await self._network.open(donor, STATE_PROTOCOL, "state", OPEN_SECONDS)
        try:
            return await self._question(channel, digest)
        except BaseException:
            channel.close()
            raise

    async def _question(self, channel: StreamChannel, digest: str | None) -> Source:
        await channel.send(Ask(run_id=self._run_id, since=self._store.head.outer_step, digest=digest))
        offer, hashes = await channel.receive(Offer, Unavailable, timeout=OPEN_SECONDS)
        if isinstance(offer, Unavailable):
            raise WireError(offer.reason or "unknown")
        assert isinstance(offer, Offer)
        if digest is not None and offer.digest != digest:
            raise WireError("digest", "not the state that was asked for")
        check_hashes(self._store.layout, self._store.slot_names, offer.outer_step, offer.digest, hashes)
        return Source(channel.remote, channel, offer, hashes)

    def _bid(self, source: Source, better: Callable[[Head], bool]) -> Bid:
        """The links must lead to what is offered, and that must be worth having."""
        offer = source.offer
        head = self._head(offer.outer_step, offer.digest, offer.chain)
        if not better(head):
            raise WireError("stale", f"step {head.outer_step} is no better than ours")
        return Bid.of(source.donor, head, offer.chain)

    def _head(self, outer_step: int, digest: str, chain: Sequence[Certificate]) -> Head:
        try:
            head = self._store.check(chain) if chain else Head(0, digest, 0)
        except HistoryError as error:
            raise WireError("history", str(error)) from error
        if (head.outer_step, head.digest) != (outer_step, digest):
            raise WireError("history", "the links lead elsewhere")
        return head

    async def _agree(self, sources: Sequence[Source], target: Head) -> list[Source]:
        """All who have the target; those who offered another state are asked again."""

        async def turn(source: Source) -> Source | None:
            if source.offer.digest == target.digest:
                return source
            try:
                return await self._question(source.channel, target.digest)
            except WireError as error:
                self._drop(source, error)
                return None

        return [one for one in await asyncio.gather(*map(turn, sources)) if one is not None]

    def _drop(self, source: Source, error: WireError) -> None:
        source.channel.close()
        self._outcome("download", error.reason)
        log.warning("a donor is left", donor=source.donor, why=str(error))

    # -- downloading -----------------------------------------------------------------------------------------

    async def _gather(self, sources: Sequence[Source], outer_step: int, digest: str) -> Pending | None:
        """The state from whoever of ``sources`` sends it; None when all of them failed. Closes their channels."""
        if not sources:
            return None
        download = self._unfinished
        if download is None or download.digest != digest:
            store = self._store
            download = Download(store.layout, store.slot_names, outer_step, digest, sources[0].hashes)
        self._unfinished = download
        now = time.monotonic()
        shares = [Share(source.donor, now, now) for source in sources]
        pending = {
            asyncio.ensure_future(self._work(source, download, share))
            for source, share in zip(sources, shares, strict=True)
        }
        try:
            while pending and not download.complete:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for one in done:
                    one.result()
            _tell_of_stalls(shares)
        finally:
            for one in pending:  # they wait for what came from another donor, or we are no longer wanted
                one.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        if not download.complete:
            return None
        self._unfinished = None
        return download.state()

    async def _work(self, source: Source, download: Download, share: Share) -> None:
        """Asks one donor for chunk after chunk, until there is nothing left to ask for or the donor fails."""
        channel, donor, owed = source.channel, source.donor, share.owed
        try:
            while not download.complete:
                while len(owed) < _WINDOW and (index := download.take(donor)) is not None:
                    owed.append(index)
                    await channel.send(Want(index=index))
                if owed:
                    await self._receive(channel, owed[0], download)
                    owed.popleft()
                    share.came(time.monotonic())
                else:
                    with contextlib.suppress(asyncio.TimeoutError):
                        await download.news(self._chunk_seconds)
        except WireError as error:
            owed.clear()
            download.give_up(donor)
            self._drop(source, error)
        except BaseException:
            download.give_up(donor)
            self._part(channel, download)
            raise
        else:
            self._part(channel, download)

    async def _receive(self, channel: StreamChannel, index: int, download: Download) -> None:
        message, payload = await channel.receive(Values, Unavailable, timeout=self._chunk_seconds)
        if isinstance(message, Unavailable):
            raise WireError(message.reason or "unknown")
        if not isinstance(message, Values) or message.index != index:
            raise WireError("malformed", f"not chunk {index}, which was due")
        await download.put(index, payload)

    def _part(self, channel: StreamChannel, download: Download) -> None:
        """Says thanks in the background, so that nobody waits for who was too slow to be needed."""
        if download.complete:
            self._network.spawn(_thank(channel))
        else:
            channel.close()


def _tell_of_stalls(shares: Sequence[Share]) -> None:
    now = time.monotonic()
    for share in overtaken(shares, now):
        log.warning(
            "a donor was overtaken", donor=share.donor, chunks=share.chunks, owed=len(share.owed),
            silent_seconds=round(now - share.heard_at, 2),
        )  # fmt: skip


async def _thank(channel: StreamChannel) -> None:
    try:
        with contextlib.suppress(WireError, asyncio.TimeoutError):
            await within(channel.send(Thanks()), _THANKS_SECONDS)
            await channel.linger(_THANKS_SECONDS)
    finally:
        channel.close()
