"""Patience for newcomers: whoever gives them the state is in no hurry to begin the next round.

Where outer steps are shorter than a download, a newcomer would run after the swarm for ever. So a donor holds back its
own contribution until its guests have what they came for and a moment to sit down; the leader waits for it as for
anybody who is slow. This costs the swarm a bounded share of its time, whoever asks and however often.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from swarm.deadline import within
from swarm.identity import PeerId

SHARE = 0.1
"""Of all time, what may be spent on waiting."""
LONGEST_SECONDS = 30.0
GRACE_SECONDS = 1.0
"""From the last chunk to a seat."""


class Welcome:
    """Belongs to the network's loop. clock: seconds, monotonic."""

    def __init__(self) -> None:
        self._guests: dict[PeerId, float | None] = {}
        self._budget = LONGEST_SECONDS
        self._counted_at = time.monotonic()
        self._changed = asyncio.Event()

    def arrive(self, guest: PeerId) -> None:
        """A guest asks for our committed state."""
        self._guests[guest] = None
        self._changed.set()

    def leave(self, guest: PeerId, *, served: bool) -> None:
        """It has got all it wanted, or it has gone."""
        if guest in self._guests:
            if served:
                self._guests[guest] = time.monotonic() + GRACE_SECONDS
            else:
                del self._guests[guest]
            self._changed.set()

    async def settled(self) -> None:
        """Waits until no guest needs our patience, or that is used up."""
        while True:
            now = time.monotonic()
            self._refill(now)
            self._guests = {guest: until for guest, until in self._guests.items() if until is None or until > now}
            if not self._guests or self._budget <= 0.0:
                return
            untils = [until for until in self._guests.values() if until is not None]
            longest = min([self._budget, *(until - now for until in untils)])
            self._changed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await within(self._changed.wait(), longest)
            self._budget -= time.monotonic() - now

    def _refill(self, now: float) -> None:
        self._budget = min(LONGEST_SECONDS, self._budget + SHARE * (now - self._counted_at))
        self._counted_at = now
