"""Whether a record under our own name means that somebody else lives with our key."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from peer.twin import Finding, Twin
from swarm.errors import ExitCode, IdentityError
from swarm.network import RECORD_LIFETIME_SECONDS
from swarm.records import Opened, PeerRecord
from tests.chain import PEERS, RUN_ID, digest

OURS, THEIRS, THIRD = "a" * 16, "b" * 16, "c" * 16
STARTED = 1000.0


def found(session: str, published: float, started: float) -> Opened:
    record = PeerRecord(
        peer_id=PEERS[0], maddrs=[], phase="training", outer_step=0, digest=digest("x"), work=0, session=session,
        started=started,
    )  # fmt: skip
    return Opened(RUN_ID, record, published + RECORD_LIFETIME_SECONDS)


def findings(records: Sequence[Opened | None], session: str = OURS) -> list[Finding]:
    twin = Twin(session, STARTED, lambda error: None)
    return [twin.judge(record) for record in records]


def test_our_own_record_or_none_is_nobody_else() -> None:
    assert (
        findings([None, found(OURS, 1001, STARTED), found(OURS, 1011, STARTED), found("", 1020, 0)])
        == [Finding.ALONE] * 4
    )


def test_our_last_life_is_nobody_else() -> None:
    """Not even where one DHT peer holds its last record and another the one before."""
    last, before = found(THEIRS, 995, 500), found(THEIRS, 985, 500)
    assert findings([last, before, last, None, before, last]).count(Finding.UNCLEAR) == 5


def test_a_last_life_on_a_machine_whose_clock_is_a_little_ahead_is_nobody_else() -> None:
    assert set(findings([found(THEIRS, 992.5, 500), found(THEIRS, 1002.5, 500)])) == {Finding.UNCLEAR}


@pytest.mark.parametrize("theirs, finding", [(999.0, Finding.SECOND), (1001.0, Finding.FIRST)])
def test_of_two_that_live_the_one_that_started_later_is_second(theirs: float, finding: Finding) -> None:
    records = [found(THEIRS, 1005, theirs), found(OURS, 1006, STARTED), found(THEIRS, 1007, theirs)]
    assert findings(records) == [Finding.UNCLEAR, Finding.ALONE, finding]


def test_of_two_that_started_together_exactly_one_is_second() -> None:
    theirs = findings([found(OURS, 1005, STARTED), found(OURS, 1007, STARTED)], session=THEIRS)[-1]
    ours = findings([found(THEIRS, 1005, STARTED), found(THEIRS, 1007, STARTED)])[-1]
    assert {ours, theirs} == {Finding.FIRST, Finding.SECOND}


def test_whoever_started_after_us_is_no_last_life_of_ours() -> None:
    """It may see us and end before it renews its record."""
    assert findings([found(THEIRS, 1010, 1009)]) == [Finding.FIRST]


def test_another_life_begins_anew() -> None:
    """The other one restarts again and again: each is judged by its own renewals."""
    records = [found(THEIRS, 1005, 990), found(THIRD, 1010, 1002), found(THEIRS, 1011, 990), found(THEIRS, 1012, 990)]
    assert findings(records) == [Finding.UNCLEAR] * 3 + [Finding.SECOND]


def test_whoever_is_second_ends_once_with_a_line() -> None:
    errors: list[IdentityError] = []
    twin = Twin(OURS, STARTED, errors.append)
    assert not twin.see(found(OURS, 1004, STARTED))
    assert twin.see(found(THEIRS, 1005, 900)), "ours is published again, or it would not be seen by the other"
    assert not twin.second
    for published in (1007, 1008):
        assert twin.see(found(THEIRS, published, 900))
    assert twin.second
    (error,) = errors
    assert error.exit_code is ExitCode.IDENTITY
    assert str(error) == (
        "identity: another peer has lived with this key for longer, on another machine; "
        "give this one its own: move the identity file away, or choose another --identity"
    )


def test_whoever_is_first_stays() -> None:
    errors: list[IdentityError] = []
    twin = Twin(OURS, STARTED, errors.append)
    for published in (1005, 1007, 1009):
        assert twin.see(found(THEIRS, published, 1001))
    assert not twin.second
    assert errors == []
