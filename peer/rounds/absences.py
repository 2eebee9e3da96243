"""Peers that are away or were caught failing. Knowledge of one peer, for a while, never shared."""

from __future__ import annotations

import time
from collections.abc import Collection

from swarm.identity import PeerId

AWAY_SECONDS = 10.0
BENCH_SECONDS = 30.0


class Absences:
    """Who cannot be reached (``add``), whom a round is better off without (``bench``) or not led by (``demote``).

    alone_since: since when no majority of the last participants has been known, in seconds of the monotonic clock.
    """

    def __init__(self) -> None:
        self.alone_since = time.monotonic()
        self._away: dict[PeerId, float] = {}
        self._benched: dict[PeerId, float] = {}
        self._demoted: dict[PeerId, float] = {}
        self._left: set[PeerId] = set()

    def add(self, peer: PeerId) -> None:
        """Its stream broke or it cannot be dialled."""
        self._away[peer] = time.monotonic() + AWAY_SECONDS

    def discard(self, peer: PeerId) -> None:
        """It is here."""
        self._away.pop(peer, None)

    def goodbyes(self, left: Collection[PeerId], live: Collection[PeerId]) -> None:
        """What the peers' own records say: no round waits for who has left, and who was away and is live is back."""
        for peer in self._left & set(live):
            self.discard(peer)
        self._left = self._left - set(live) | set(left)
        for peer in left:
            self.add(peer)

    def bench(self, peer: PeerId, seconds: float = BENCH_SECONDS) -> None:
        """It made a round fail."""
        self._benched[peer] = time.monotonic() + seconds

    def benched(self, peer: PeerId) -> bool:
        """Whether its time on the bench lasts."""
        return self._benched.get(peer, 0.0) > time.monotonic()

    def demote(self, peer: PeerId) -> None:
        """An attempt that it led came to nothing, whoever's fault that was."""
        self._demoted[peer] = time.monotonic() + AWAY_SECONDS

    def doubtful(self, peer: PeerId) -> bool:
        """Whether it is asked to lead only after the others."""
        now = time.monotonic()
        return self._away.get(peer, 0.0) > now or self._demoted.get(peer, 0.0) > now

    def majority(self) -> None:
        """A majority is here, or nobody is missed: the isolation time starts afresh."""
        self.alone_since = time.monotonic()

    def known(self) -> frozenset[PeerId]:
        """All who are not to be waited for."""
        now = time.monotonic()
        for table in (self._away, self._benched):
            for peer in [peer for peer, until in table.items() if until <= now]:
                del table[peer]
        return frozenset(self._away) | frozenset(self._benched)
