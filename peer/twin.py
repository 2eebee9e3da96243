"""Whether somebody else lives with our identity, a copied key: told from the record that the swarm has under our name.

Both of two peers with one key publish under the same name, and the DHT keeps what expires later. Our own last life
may be found there too, for as long as its record lives; the difference is that nobody renews that one. Of two that
live, the one that started later ends, for the other is the one that the swarm has been counting on.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import structlog

from swarm.errors import IdentityError
from swarm.network import RECORD_LIFETIME_SECONDS
from swarm.records import Opened

log = structlog.get_logger(__name__)

_CLOCK_SECONDS = 3.0  # by which two clocks that agree may differ


class Finding(Enum):
    """What the record under our name says of us."""

    ALONE = "alone"
    UNCLEAR = "unclear"  # somebody's who may be dead
    FIRST = "first of two"
    SECOND = "second of two"


class Twin:
    """Looks at the record under our own name, each time the swarm's are read.

    session: random, of this process. started: Unix time. fail: called once, when we have to end.
    """

    def __init__(self, session: str, started: float, fail: Callable[[IdentityError], object]):
        self.session, self.started = session, started
        self.second = False
        self._fail = fail
        self._warned = False
        self._other: tuple[str, float] = ("", 0.0)  # session and expiration, as first seen

    def see(self, found: Opened | None) -> bool:
        """Takes note; whether our own record has to be published again, as another one is in its place."""
        finding = self.judge(found)
        if finding is Finding.SECOND and not self.second:
            self.second = True
            self._fail(
                IdentityError(
                    "identity: another peer has lived with this key for longer, on another machine; "
                    "give this one its own: move the identity file away, or choose another --identity"
                )
            )
        elif finding is Finding.FIRST and not self._warned:
            self._warned = True
            log.warning("a second peer has started with our identity, on another machine; it will be told to end")
        return finding is not Finding.ALONE

    def judge(self, found: Opened | None) -> Finding:
        """A record of another session is a living peer's once it was renewed, and that after we started.

        Renewed alone is not enough: of our last life, one DHT peer may still hold an older record than another does.
        Who started after us is no last life of ours, and may not live long enough to renew anything.
        """
        if found is None or found.record.session in ("", self.session):
            return Finding.ALONE
        if found.record.started > self.started + _CLOCK_SECONDS:
            return Finding.FIRST
        session, first = self._other
        if session != found.record.session:
            self._other = (found.record.session, found.expiration_time)
            return Finding.UNCLEAR
        published = found.expiration_time - RECORD_LIFETIME_SECONDS
        if found.expiration_time <= first or published <= self.started + _CLOCK_SECONDS:
            return Finding.UNCLEAR
        theirs, ours = (found.record.started, found.record.session), (self.started, self.session)
        return Finding.SECOND if ours > theirs else Finding.FIRST
