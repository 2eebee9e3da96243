"""How fast peers send and receive, as seen in real rounds, and parts that suit it. Pure, with the clock passed in.

At every eighth outer step contributions do not wait for the mean (``lead.py``), so that each link shows what it can do,
and every reducer times what arrives from each groupmate. It tells the leaders of later attempts. The sum over the
receivers is how fast a peer sends: what others saw, not what it says of itself. The sum over the senders is how fast it
receives.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from peer.needs import MOST_PARTS
from swarm.identity import PeerId

LEAST_BYTES = 1 << 18
"""Less than this says more of the latency than of the rate."""
LEAST_SECONDS = 0.05
MOST_RATE_BYTES = 1 << 40
TIMED_EVERY = 8
_MEMORY = 0.5
"""Weight of the newest timing; older ones fade."""
_FORGOTTEN_AFTER = 8
"""Timings without news of a peer: who reduces nothing is sent nothing, and may have a better link by now."""
ALIKE = 1.5
"""Rates within this factor of each other are one rate: parts should not follow the noise."""
_ROUNDING = 1e-9
_MOST_RATIO = 16.0
"""No rate counts for more than so many times the median: the largest part that a lie about others can bring."""


def is_timed(outer_step: int) -> bool:
    """Whether the exchange after ``outer_step`` is one that shows how fast links are."""
    return outer_step % TIMED_EVERY == 0


@dataclass
class Flow:
    """What came from one peer: bytes after the first message, between it and the last. Seconds, monotonic."""

    first: float
    last: float
    received_bytes: int = 0


@dataclass
class Flows:
    """Arrivals of one exchange, by sender."""

    flows: dict[PeerId, Flow] = field(default_factory=dict)

    def arrived(self, sender: PeerId, received_bytes: int, now: float) -> None:
        """Values came from ``sender``."""
        flow = self.flows.get(sender)
        if flow is None:
            self.flows[sender] = Flow(now, now)
        else:
            flow.last = now
            flow.received_bytes += received_bytes

    def rates(self) -> dict[PeerId, float]:
        """Bytes per second of the senders that sent enough to tell."""
        return {
            peer: flow.received_bytes / (flow.last - flow.first)
            for peer, flow in self.flows.items()
            if flow.received_bytes >= LEAST_BYTES and flow.last - flow.first >= LEAST_SECONDS
        }


class Observed:
    """Rates of arrival from each peer over the last timings, in bytes per second. Kept while the peer runs."""

    def __init__(self) -> None:
        self._rates: dict[PeerId, float] = {}
        self._learned_at: dict[PeerId, int] = {}
        self._timings = 0

    def learn(self, flows: Flows) -> None:
        """A timed exchange is over."""
        self._timings += 1
        for peer, rate in flows.rates().items():
            known = self._rates.get(peer, rate)
            self._rates[peer] = known + _MEMORY * (rate - known)
            self._learned_at[peer] = self._timings
        for peer, learned_at in list(self._learned_at.items()):
            if self._timings - learned_at >= _FORGOTTEN_AFTER:
                del self._rates[peer], self._learned_at[peer]

    def told(self, peers: Sequence[PeerId]) -> dict[PeerId, int]:
        """What to tell a leader of ``peers``: whole bytes per second, at least 1."""
        return {peer: min(max(1, round(self._rates[peer])), MOST_RATE_BYTES) for peer in peers if peer in self._rates}


def link_rates(told: Mapping[PeerId, Mapping[PeerId, int]], reducers: Collection[PeerId]) -> dict[PeerId, float]:
    """Bytes per second of each reducer's link, the slower direction; only where most of the others heard from it.

    told: by member, the rates at which it received from others; only reducers are sent to. A reducer's own word counts
    for how fast it receives and never for how fast it sends: what it declares is bounded by what the others observed.
    Where it has not heard from most members it has no word: it may be one that nobody sends to, because its link is
    slow. Flows that nobody told of, to one that says nothing, or to and from a newcomer, count as the mean of the rest.
    """
    found = {}
    for peer in reducers:
        others = [other for other in reducers if other != peer]
        sent = [told[other][peer] for other in others if peer in told[other]]
        if 2 * len(sent) <= len(others):
            continue
        found[peer] = sum(sent) * len(others) / len(sent)
        received = [told[peer][other] for other in told if other in told[peer]]
        if 2 * len(received) > len(told) - 1:
            found[peer] = min(found[peer], sum(received) * (len(told) - 1) / len(received))
    return found


def well_cut(lengths: Mapping[PeerId, int], reducers: Collection[PeerId], values: int) -> bool:
    """Whether ``divide`` may have given the parts of these ``lengths``, by member, to ``reducers``."""
    longest = MOST_PARTS * values // len(reducers) + 1 if reducers else 0
    return sum(lengths.values()) == values and all(
        length <= (longest if peer in reducers else 0) for peer, length in lengths.items()
    )


def divide(values: int, reducers: Sequence[PeerId], members: int, rates: Mapping[PeerId, float]) -> dict[PeerId, int]:
    """Lengths of the parts: how many of ``values`` each reducer averages, so that the slowest link is done soonest.

    In a group of n a member with the share p of the values sends (1 - p) of its own and n - 1 times p of the mean:
    1 + (n - 2) p vectors, and receives as many. With rates b the longest of (1 + (n - 2) p) / b is least where all
    are equal, but no share is negative: water-filling. Equal parts where rates are unknown or alike, and in pairs,
    where both send one vector whatever the parts. No part is longer than MOST_PARTS equal ones.

    This takes the mean's values to cost what a contribution's do; where they cost more, shares are less than best.

    rates: bytes per second by member; a reducer without one counts as the median.
    """
    if not reducers:
        raise ValueError("nobody reduces")
    known = [rates[peer] for peer in reducers if peer in rates]
    if members < 3 or not known or max(known) <= ALIKE * min(known):
        return _whole(values, dict.fromkeys(reducers, 1.0 / len(reducers)))
    median = statistics.median(known)
    bounded = {peer: min(rates.get(peer, median), _MOST_RATIO * median) for peer in reducers}
    return _whole(values, _capped(_shares(bounded, members), bounded, MOST_PARTS / len(reducers)))


def _shares(rates: Mapping[PeerId, float], members: int) -> dict[PeerId, float]:
    """Shares p >= 0 that add up to 1 and for which the longest of (1 + (members - 2) p) / rate is least."""
    taking = sorted(rates, key=lambda peer: (rates[peer], peer))
    while True:
        seconds = (members - 2 + len(taking)) / sum(rates[peer] for peer in taking)
        if rates[taking[0]] * seconds >= 1.0 or len(taking) == 1:
            break
        del taking[0]  # its own contribution alone takes it longer than that
    shares = dict.fromkeys(rates, 0.0)
    shares.update({peer: max(0.0, rates[peer] * seconds - 1.0) / (members - 2) for peer in taking})
    return shares


def _capped(shares: Mapping[PeerId, float], rates: Mapping[PeerId, float], most: float) -> dict[PeerId, float]:
    """No share above ``most``; what is above goes to the others, by their rates."""
    capped = {peer: min(share, most) for peer, share in shares.items()}
    while (rest := 1.0 - sum(capped.values())) > _ROUNDING:
        room = [peer for peer, share in capped.items() if share < most]
        total = sum(rates[peer] for peer in room)
        capped.update({peer: min(most, capped[peer] + rest * rates[peer] / total) for peer in room})
    return capped


def _whole(values: int, shares: Mapping[PeerId, float]) -> dict[PeerId, int]:
    """Whole lengths that add up to ``values``; those of equal shares differ by at most one, early ones are longer."""
    lengths = {peer: int(share * values) for peer, share in shares.items()}
    rest = values - sum(lengths.values())
    for peer in sorted(shares, key=lambda peer: -shares[peer])[:rest]:  # sorted() keeps the order of equals
        lengths[peer] += 1
    return lengths
