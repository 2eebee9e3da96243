"""What the swarm is doing, from its records: a pure view, decided with what we know ourselves."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from swarm.history import Digest, Head, heavier
from swarm.identity import PeerId
from swarm.records import PeerRecord

_AWAY = ("leaving", "stopped")


@dataclass(frozen=True)
class SwarmView:
    """The live peers of a run, ourselves left out.

    phases: how many peers are in which. outer_step: where most peers stand (the highest of equals). companions:
    peers at our head that can be dialled, with their addresses. ahead: peers whose history is heavier than ours,
    the heaviest first. claims: where those say they are. forked: whether somebody is where we have been, with
    another digest. missing: how many peers have yet to make the newest outer step that we made. live: the peers
    themselves. left: peers that say that they leave.
    """

    peers: int = 0
    phases: Mapping[str, int] = field(default_factory=dict)
    outer_step: int = 0
    companions: Mapping[PeerId, Sequence[str]] = field(default_factory=dict)
    ahead: Sequence[PeerId] = ()
    claims: Mapping[PeerId, Head] = field(default_factory=dict)
    forked: bool = False
    missing: int = 0
    live: Collection[PeerId] = ()
    left: Collection[PeerId] = ()
    reachable: Mapping[PeerId, Sequence[str]] = field(default_factory=dict)


def view(
    records: Mapping[PeerId, PeerRecord],
    ourselves: PeerId,
    head: Head,
    past: Mapping[int, Digest] = MappingProxyType({}),
) -> SwarmView:
    """What ``records`` say to a peer at ``head``. past: digests of our own recent outer steps."""
    live = {peer: record for peer, record in records.items() if peer != ourselves and record.phase not in _AWAY}
    claims: dict[PeerId, Head] = {
        peer: Head(record.outer_step, record.digest, record.work) for peer, record in live.items()
    }
    by_head: dict[Head, list[PeerId]] = defaultdict(list)
    for peer, claim in claims.items():
        if heavier(claim, head) and live[peer].maddrs:
            by_head[claim].append(peer)
    # Heaviest first; a claim costs a liar nothing, but a download that its links do not bear out is refused.
    ahead = sorted(by_head, key=lambda one: (-one.work, -one.outer_step, one.digest))  # as ``heavier`` has it
    steps = Counter(record.outer_step for record in live.values())
    reachable = {peer: record.maddrs for peer, record in live.items() if record.maddrs}
    return SwarmView(
        peers=len(live),
        phases=dict(Counter(record.phase for record in live.values())),
        outer_step=max(steps, key=lambda step: (steps[step], step)) if steps else head.outer_step,
        companions={peer: maddrs for peer, maddrs in reachable.items() if claims[peer] == head},
        ahead=[peer for one in ahead for peer in by_head[one]],
        claims={peer: claim for peer, claim in claims.items() if heavier(claim, head)},
        forked=any(past.get(claim.outer_step, claim.digest) != claim.digest for claim in claims.values()),
        missing=sum(claim.outer_step == head.outer_step - 1 for claim in claims.values()),
        live=tuple(live),
        left=tuple(peer for peer, record in records.items() if peer != ourselves and record.phase in _AWAY),
        reachable=reachable,
    )
