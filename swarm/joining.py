"""Joining the swarm, and staying joined: who introduces us is dialled again for as long as we run, with backoff.

First the initial peers; where none of them answers, peers that were met before. Whoever answers is asked for its time.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog
from hivemind.dht.node import DHTNode
from hivemind.p2p import P2PDaemonError, P2PHandlerError, PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure
from hivemind.proto import dht_pb2

from swarm.clock import CLOCK_TOLERANCE_SECONDS, Clock, ahead
from swarm.deadline import within
from swarm.identity import PeerId

log = structlog.get_logger(__name__)

_ASK_SECONDS = 5.0
_TIME_SECONDS = 2.0  # joining waits for it
_RETRY_SECONDS = (0.5, 30.0)  # first and longest pause between two attempts to reach somebody
_LOOK_SECONDS = 10.0
_ASKED_PEERS = 8  # for their time, beside the initial peers

Acquaintances = Callable[[], Mapping[PeerId, Sequence[str]]]
"""Peers met before, with their addresses: a second choice where no initial peer answers."""


class Dial(Protocol):
    """Connects to a peer at any of its addresses; whether that worked."""

    def __call__(self, peer_id: PeerId, maddrs: Sequence[str]) -> Awaitable[bool]:
        """See Network.dial."""


@dataclass(frozen=True)
class InitialPeer:
    """A bootstrap (or any peer) to join the DHT through."""

    peer_id: PeerId
    maddr: str

    @classmethod
    def parse(cls, text: str) -> InitialPeer:
        """Splits ``/ip4/.../tcp/.../p2p/PEER_ID``, already validated."""
        maddr, _, peer_id = text.rpartition("/p2p/")
        return cls(peer_id, maddr)


class Joining:
    """Owned by a Network, and runs in its loop. ``joined``: an initial peer answered, or none was given.

    compared: called with our clock's offset in seconds, each time it was compared.
    """

    def __init__(
        self,
        node: DHTNode,
        dial: Dial,
        initial_peers: Sequence[str],
        acquaintances: Acquaintances,
        compared: Callable[[float], object],
    ):
        self.joined = asyncio.Event()
        self.clock = Clock()
        self._node, self._dial, self._compared = node, dial, compared
        self._ourselves: PeerId = node.peer_id.to_base58()
        self._initial = [InitialPeer.parse(text) for text in initial_peers]
        self._acquaintances = acquaintances

    @property
    def _known(self) -> list[PeerId]:
        """The peers in the DHT's routing table."""
        return [peer.to_base58() for peer in self._node.protocol.routing_table.uid_to_peer_id.values()]

    async def run(self) -> None:
        """Tries until somebody answers, and goes on, so that a bootstrap may be away at any time."""
        if not self._initial:
            self.joined.set()  # a swarm of its own, until others come or one that was met before answers
        first, longest = _RETRY_SECONDS
        pause = first
        while True:
            if await self._reach_any():
                if not self.joined.is_set():
                    with contextlib.suppress(asyncio.TimeoutError):
                        # fills the routing table with the peers nearest to us
                        await within(self._node.find_nearest_nodes([self._node.node_id]), _ASK_SECONDS)
                await self._compare_clocks()
                self.joined.set()
                pause = _LOOK_SECONDS
            else:
                if self._initial:
                    log.warning(
                        "none of the initial peers answers; trying again",
                        initial_peers=[peer.maddr for peer in self._initial],
                        seconds=round(pause, 1),
                    )
                pause = min(pause * 2, longest)
            await asyncio.sleep(pause)

    async def _reach_any(self) -> bool:
        """Whether we are connected to somebody: an initial peer, the DHT, else a peer met before."""
        reached = await asyncio.gather(*(self._reach(peer.peer_id, [peer.maddr]) for peer in self._initial))
        if any(reached) or (self.joined.is_set() and self._known):
            return True
        met = self._acquaintances()
        found = await asyncio.gather(*(self._reach(peer, maddrs) for peer, maddrs in met.items()))
        if any(found):
            log.info("no initial peer answers, but peers met before do", peers=sum(found), asked=len(found))
        return any(found)

    async def _reach(self, peer_id: PeerId, maddrs: Sequence[str]) -> bool:
        if peer_id == self._ourselves:
            return True
        if not await self._dial(peer_id, maddrs):
            return False
        return await self._node.protocol.call_ping(PeerID.from_base58(peer_id)) is not None

    async def _compare_clocks(self) -> None:
        """Asks the initial peers and some that they introduced us to."""
        asked = {*(peer.peer_id for peer in self._initial), *self._known[:_ASKED_PEERS]} - {self._ourselves}
        answers = zip(asked, await asyncio.gather(*map(self.ask_time, asked)), strict=True)
        before, now = self.clock, Clock({peer: seconds for peer, seconds in answers if seconds is not None})
        if now.offset is None:
            return
        self.clock = now
        self._compared(now.offset)
        if abs(now.offset) > CLOCK_TOLERANCE_SECONDS >= abs(before.offset or 0.0):
            log.warning(f"clock: {now.words}; turn on NTP")

    async def ask_time(self, peer_id: PeerId) -> float | None:
        """Seconds by which our clock is ahead of a peer's, if it tells."""
        protocol = self._node.protocol
        request = dht_pb2.PingRequest(peer=protocol.node_info, validate=False)
        asked = time.time()
        try:
            answer = await within(protocol.get_stub(PeerID.from_base58(peer_id)).rpc_ping(request), _TIME_SECONDS)
        except (
            P2PHandlerError,
            P2PDaemonError,
            ControlFailure,
            asyncio.TimeoutError,
            OSError,
            asyncio.IncompleteReadError,
        ) as error:
            log.debug("does not tell its time", peer=peer_id, why=str(error)[:300])
            return None
        return ahead(answer.dht_time, asked, time.time())
