"""Who leads an outer step: an order that all peers compute alike, so that they meet without asking around."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

from swarm.identity import PeerId


def leader_order(run_id: str, outer_step: int, peers: Collection[PeerId]) -> list[PeerId]:
    """The peers in the order in which they are asked to lead. It changes with every outer step, to share the load."""

    def rank(peer: PeerId) -> bytes:
        return hashlib.sha256(f"{run_id}|{outer_step}|{peer}".encode()).digest()

    return sorted(peers, key=rank)


def candidates(
    previous: Mapping[PeerId, int] | None, listening: Collection[PeerId], ourselves: PeerId, isolated: bool
) -> frozenset[PeerId]:
    """Who may be asked to lead.

    The participants of the last link, whom every peer at this state knows; before the first link, or when their
    majority is gone for good, all peers that listen.

    Args:
        listening: peers at our state that others can dial, as far as we see.
        isolated: the isolation time is over.
    """
    if previous is None or isolated:
        return frozenset(listening)
    return frozenset(peer for peer in previous if peer != ourselves or ourselves in listening)
