"""Which of the states that donors offer to believe: a pure decision.

A history speaks for itself as far as its signatures go, but a newcomer knows nobody, and invented peers can sign an
invented history. So a state is taken only if at least as many of those who were heard stand on its history as beside
it, and never on the word of one alone where others are there to be asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from swarm.history import Certificate, Head, heavier
from swarm.identity import PeerId


@dataclass(frozen=True)
class Bid:
    """What a donor offers: a head, and the outer steps and digests that lead to it."""

    donor: PeerId
    head: Head
    trail: Mapping[int, str]

    @classmethod
    def of(cls, donor: PeerId, head: Head, chain: Sequence[Certificate]) -> Bid:
        """From an offer's chain, already checked."""
        trail = {one.link.outer_step: one.link.digest for one in chain}
        return cls(donor, head, {**trail, head.outer_step: head.digest})

    def passes(self, point: Head) -> bool:
        """Whether ``point`` lies on this history, as far as it is known."""
        return self.trail.get(point.outer_step) == point.digest


def choose(bids: Sequence[Bid], claims: Mapping[PeerId, Head]) -> Head | None:
    """The heaviest head that enough of the others stand by; None when there is none.

    Args:
        claims: what peers say in their records, of those that say they are ahead of us.
    """
    believed = [bid.head for bid in bids if _believed(bid, bids, claims)]
    return reduce(lambda one, other: other if heavier(other, one) else one, believed) if believed else None


def _believed(bid: Bid, bids: Sequence[Bid], claims: Mapping[PeerId, Head]) -> bool:
    if bid.head.outer_step == 0:
        return True  # before the first link there is nothing to stand on, and the lower digest is everybody's
    with_it = {other.donor for other in bids if other.passes(bid.head) or bid.passes(other.head)}
    beside = {other.donor for other in bids} - with_it
    for peer, claim in claims.items():
        if bid.passes(claim):
            with_it.add(peer)
        elif claim.outer_step in bid.trail and peer not in with_it:
            beside.add(peer)
    others = (claims.keys() | {other.donor for other in bids}) - {bid.donor}
    alone = with_it == {bid.donor} and len(others) > 1
    return len(with_it) >= len(beside) and not alone
