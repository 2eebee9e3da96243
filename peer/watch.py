"""Keeps the swarm informed of us and us of the swarm: publishes our record, reads the others', dials newcomers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import structlog

from peer.progress import SwarmView, view
from swarm.history import Head
from swarm.identity import PeerId
from swarm.network import RECORD_LIFETIME_SECONDS, Network
from swarm.records import PeerRecord

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
_REFRESH_SECONDS = RECORD_LIFETIME_SECONDS / 3
LAG_SECONDS = 3.0
"""A heavier history must be seen this long: while a commit spreads, others are ahead of us for a moment."""


class Watch:
    """Runs in the network's loop; ``view`` and ``lagging`` may be read from any thread.

    describe: our record as of now. seen: called with each new view.
    """

    def __init__(
        self,
        run_id: str,
        network: Network,
        describe: Callable[[], PeerRecord],
        head: Callable[[], Head],
        seen: Callable[[SwarmView], None],
    ):
        self.view = SwarmView()
        self._run_id, self._network = run_id, network
        self._describe, self._head, self._seen = describe, head, seen
        self._published: PeerRecord | None = None
        self._published_at = 0.0
        self._ahead_since: tuple[Head, float] | None = None
        self._dialled: dict[PeerId, tuple[str, ...]] = {}
        self._hurry = asyncio.Event()

    async def run(self) -> None:
        """Looks every second, and at once when told to hurry."""
        while True:
            await self.look()
            self._hurry.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), LOOK_SECONDS)

    def hurry(self) -> None:
        """Something changed: publish and look now. Thread-safe through ``call_soon_threadsafe`` only."""
        self._hurry.set()

    async def look(self) -> SwarmView:
        """Publishes if there is news, reads the records, dials whom we do not know."""
        record = self._describe()
        due = record != self._published or time.monotonic() - self._published_at > _REFRESH_SECONDS
        if due and await self._network.publish(self._run_id, record):
            self._published, self._published_at = record, time.monotonic()
        records = await self._network.read_peers(self._run_id)
        head = self._head()
        self.view = view(records, self._network.peer_id, head)
        if not self.view.ahead:
            self._ahead_since = None
        elif self._ahead_since is None or self._ahead_since[0] != head:
            self._ahead_since = (head, time.monotonic())
        for peer, maddrs in self.view.reachable.items():
            if self._dialled.get(peer) != tuple(maddrs):
                self._dialled[peer] = tuple(maddrs)
                self._network.spawn(self._meet(peer, tuple(maddrs)))
        self._seen(self.view)
        return self.view

    async def _meet(self, peer: PeerId, maddrs: tuple[str, ...]) -> None:
        if not await self._network.dial(peer, maddrs):
            self._dialled.pop(peer, None)  # another try at the next look

    @property
    def lagging(self) -> bool:
        """Whether a heavier history has been there for a while."""
        since = self._ahead_since
        return since is not None and time.monotonic() - since[1] >= LAG_SECONDS

    async def say_goodbye(self) -> None:
        """Publishes the leaving record."""
        await self._network.publish(self._run_id, self._describe())
