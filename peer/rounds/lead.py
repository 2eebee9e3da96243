"""How far our values for a part may run ahead of the mean that comes back. No I/O, with the clock passed in.

Contributions and means share every link. Without a limit, buffers fill with contributions, means queue up behind them,
and where three flows into one host are unlike, the slowest holds up the mean of its part while the others have long
been sent: in the end links are idle that could have carried means all the time. A limit lets fast flows wait for slow
ones, which then have the link to themselves. At 100 Mbit/s and 50 ms it took 40 MB from 74 to 80 % of the floor.

The limit must never keep back what a round needs: it is off once the mean is stuck (somebody froze), void (somebody was
refused), or late.
"""

from __future__ import annotations

from dataclasses import dataclass

LEAST_BYTES = 1 << 19
LEAD_SECONDS = 0.4
"""Of what comes back in a second: what is on its way there, in queues, and on its way back."""


@dataclass
class Lead:
    """Of one part. lift_at: from then on there is no limit, in seconds of a monotonic clock."""

    lift_at: float
    lifted: bool = False
    _back: int = 0
    _back_bytes: int = 0
    _first: float = 0.0
    _last: float = 0.0

    def came_back(self, index: int, size_bytes: int, now: float) -> None:
        """Chunk ``index`` of the mean is here."""
        if not index:
            self._first = now
        else:
            self._back_bytes += size_bytes
        self._back, self._last = index + 1, now

    def too_far(self, index: int, size_bytes: int, now: float) -> bool:
        """Whether chunk ``index`` of ours, of so many bytes, has to wait for more of the mean."""
        if self.lifted or now >= self.lift_at:
            return False
        seconds = self._last - self._first
        allowed = max(LEAST_BYTES, LEAD_SECONDS * self._back_bytes / seconds if seconds > 0 else 0)
        return (index - self._back) * size_bytes >= allowed
