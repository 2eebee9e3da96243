"""How far this machine's clock is from the swarm's, as the peers that it meets tell.

Records carry the time at which they expire: whose clock is off, its records expire at once or are too far in the
future, and it takes those of others for expired. One peer may be wrong or lie, so the median of several is taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from swarm.errors import ClockError
from swarm.identity import PeerId

CLOCK_TOLERANCE_SECONDS = 3.0
"""Within this, clocks agree: hivemind's own bound between two peers."""
CLOCK_LIMIT_SECONDS = 15.0
"""Beyond this nobody can take part: a record lives for 30 s and is renewed every 10."""


@dataclass(frozen=True)
class Clock:
    """How our clock compares. offsets: seconds by which it is ahead of each peer's that told its time."""

    offsets: Mapping[PeerId, float] = field(default_factory=dict)

    @property
    def offset(self) -> float | None:
        """Seconds by which our clock is ahead of the swarm's, behind if negative; None before anybody answered."""
        return median(self.offsets.values()) if self.offsets else None

    @property
    def words(self) -> str:
        """What the offset means, and who says so."""
        offset, peers = self.offset or 0.0, len(self.offsets)
        side = "ahead of" if offset > 0 else "behind"
        whose = "the one peer that answers" if peers == 1 else f"the swarm ({peers} peers)"
        return f"this machine's is {abs(offset):.0f} s {side} that of {whose}"

    def check(self) -> None:
        """Raises ClockError when the offset is beyond the limit."""
        if abs(self.offset or 0.0) > CLOCK_LIMIT_SECONDS:
            raise ClockError(f"clock: {self.words}; set it, and turn on NTP to keep it right")


def ahead(theirs: float, asked: float, answered: float) -> float | None:
    """Seconds by which our clock is ahead of a peer's, all in Unix seconds; None when it tells no time.

    It looked at its clock between our question and its answer: in the middle, for all that we know.
    """
    if not math.isfinite(theirs) or theirs <= 0:
        return None
    return (asked + answered) / 2 - theirs
