"""Who gave up on a round and whom it blames: what a leader makes of complaints that it cannot check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from swarm.identity import PeerId


class Failures:
    """The complaints of one attempt.

    accusations: who gave up -> whom it waited for in vain; itself where it is gone, or names nobody of the group.
    reason: that of the first complaint.
    """

    def __init__(self) -> None:
        self.accusations: dict[PeerId, PeerId] = {}
        self.reason = ""

    def add(self, accuser: PeerId, accused: PeerId | None, reason: str, group: Collection[PeerId]) -> None:
        """Remembers a complaint. A peer that complains twice is heard once, but to be gone settles it."""
        if accused is None or accused not in group:
            self.accusations[accuser] = accuser
        else:
            self.accusations.setdefault(accuser, accused)
        self.reason = self.reason or reason

    @property
    def certain(self) -> bool:
        """Whether somebody failed for certain: nobody else needs to confirm it."""
        return any(accuser == accused for accuser, accused in self.accusations.items())


def blame(accusations: Mapping[PeerId, PeerId]) -> list[PeerId]:
    """Whom the next attempt is better off without.

    Whoever is gone or admits a failure, and whom two name. One's word against another's proves neither, be it the
    leader's own: then those who complain stay away, so that nobody gains by accusing.
    """
    named = Counter(accused for accuser, accused in accusations.items() if accuser != accused)
    blamed = {accuser for accuser, accused in accusations.items() if accuser == accused}
    blamed |= {accused for accused, times in named.items() if times > 1}
    return sorted(blamed or accusations)
