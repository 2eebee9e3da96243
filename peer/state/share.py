"""What each donor does for a download, and which of them kept it waiting: a pure decision."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from swarm.identity import PeerId

_PATIENCE_CHUNKS = 3.0
"""At the end everybody owes something; a stall is longer than the quickest donor needs for so many chunks."""


@dataclass
class Share:
    """One donor's part. began_at, heard_at: when we began and when its last chunk came, seconds, monotonic."""

    donor: PeerId
    began_at: float
    heard_at: float
    chunks: int = 0
    owed: deque[int] = field(default_factory=deque)

    def came(self, now: float) -> None:
        """A chunk of it has arrived and is right."""
        self.chunks += 1
        self.heard_at = now


def overtaken(shares: Sequence[Share], now: float) -> list[Share]:
    """Those who owe chunks, and have been silent for so long that others had to send them in their stead."""
    quickest = min(((now - share.began_at) / share.chunks for share in shares if share.chunks), default=0.0)
    return [
        share for share in shares if quickest and share.owed and now - share.heard_at > _PATIENCE_CHUNKS * quickest
    ]  # fmt: skip
