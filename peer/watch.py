"""Keeps the swarm informed of us and us of the swarm: publishes our record, reads the others', dials newcomers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import structlog

from peer.progress import SwarmView, view
from peer.twin import Twin
from swarm.history import Digest, Head
from swarm.identity import PeerId
from swarm.network import RECORD_LIFETIME_SECONDS, Network
from swarm.records import PeerRecord

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0
_REFRESH_SECONDS = RECORD_LIFETIME_SECONDS / 3
_PAST_STEPS = 64
LAG_SECONDS = 3.0
"""A heavier history must be seen this long: while a commit spreads, others are ahead of us for a moment."""


class Watch:
    """Runs in the network's loop; ``view`` and ``lagging`` may be read from any thread.

    describe: our record as of now. seen: called with each new view. twin: is shown the record under our own name.
    """

    def __init__(
        self,
        run_id: str,
        network: Network,
        describe: Callable[[], PeerRecord],
        head: Callable[[], Head],
        seen: Callable[[SwarmView], None],
        twin: Twin,
    ):
        self.view = SwarmView()
        self._run_id, self._network = run_id, network
        self._describe, self._head, self._seen, self._twin = describe, head, seen, twin
        self._published: PeerRecord | None = None
        self._published_at = 0.0
        self._past: dict[int, Digest] = {}
        self._ahead_since: tuple[Head, float] | None = None
        self._forked_since: float | None = None
        self._dialled: dict[PeerId, tuple[str, ...]] = {}
        self._hurry = asyncio.Event()

    async def run(self) -> None:
        """Looks every second, and at once when told to hurry."""
        while True:
            self._hurry.clear()  # before: what changes during the look is looked at again
            await self.look()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), LOOK_SECONDS)

    def hurry(self) -> None:
        """Something changed: publish and look now. Thread-safe through ``call_soon_threadsafe`` only."""
        self._hurry.set()

    async def look(self) -> SwarmView:
        """Reads the records, publishes ours if there is news, dials whom we do not know.

        In this order: ours takes the place of what somebody else may have published under our name.
        """
        found = await self._network.read_peers(self._run_id)
        replaced = self._twin.see(found.get(self._network.peer_id))
        record = self._describe()
        due = replaced or record != self._published or time.monotonic() - self._published_at > _REFRESH_SECONDS
        if due and await self._network.publish(self._run_id, record):
            self._published, self._published_at = record, time.monotonic()
        records = {peer: opened.record for peer, opened in found.items()}
        head = self._head()
        self._remember(head)
        self.view = view(records, self._network.peer_id, head, self._past)
        self._clock(head, time.monotonic())
        for peer, maddrs in self.view.reachable.items():
            if self._dialled.get(peer) != tuple(maddrs):
                self._dialled[peer] = tuple(maddrs)
                self._network.spawn(self._meet(peer, tuple(maddrs)))
        self._seen(self.view)
        return self.view

    def _remember(self, head: Head) -> None:
        """Where we have been, without a gap: a jump is a download, perhaps of another history."""
        if head.outer_step - 1 not in self._past and self._past.get(head.outer_step) != head.digest:
            self._past.clear()
        self._past[head.outer_step] = head.digest
        while len(self._past) > _PAST_STEPS:
            del self._past[min(self._past)]

    def _clock(self, head: Head, now: float) -> None:
        if not self.view.ahead:
            self._ahead_since = None
        elif self._ahead_since is None or self._ahead_since[0] != head:
            self._ahead_since = (head, now)
        if not self.view.forked:
            self._forked_since = None
        elif self._forked_since is None:
            self._forked_since = now

    async def _meet(self, peer: PeerId, maddrs: tuple[str, ...]) -> None:
        if not await self._network.dial(peer, maddrs):
            self._dialled.pop(peer, None)  # another try at the next look

    @property
    def lagging(self) -> bool:
        """Whether a heavier history has been there for a while.

        Behind on our own history, we wait where we are. On another one we may go on committing beside it, and which
        of the two is heavier may change every second: there the fork is what has to last.
        """
        ahead, forked, now = self._ahead_since, self._forked_since, time.monotonic()
        if ahead is None:
            return False
        return now - ahead[1] >= LAG_SECONDS or (forked is not None and now - forked >= LAG_SECONDS)

    async def say_goodbye(self) -> None:
        """Publishes the leaving record; not in the name of a peer that stays."""
        if self._twin.second:
            return
        await self._network.publish(self._run_id, self._describe())
