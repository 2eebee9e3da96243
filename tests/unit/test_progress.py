"""What the swarm's records say to one peer."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from peer.progress import SwarmView, view
from swarm.history import Head, heavier
from swarm.records import PeerRecord
from tests.chain import PEERS, digest

OURSELVES = PEERS[0]
HEAD = Head(5, digest("ours"), 100)
MADDRS = ["/ip4/10.0.0.1/tcp/31337"]


def a_record(number: int, head: Head = HEAD, phase: str = "training", maddrs: list[str] = MADDRS) -> PeerRecord:
    return PeerRecord(
        peer_id=PEERS[number],
        maddrs=maddrs,
        phase=phase,
        outer_step=head.outer_step,
        digest=head.digest,
        work=head.work,
    )


def seen(*records: PeerRecord, head: Head = HEAD, **others: Any) -> SwarmView:
    return view({record.peer_id: record for record in records}, OURSELVES, head, **others)


heads = st.builds(Head, st.integers(3, 7), st.sampled_from(["ours", "theirs"]).map(digest), st.integers(98, 102))
phases = st.sampled_from(["training", "averaging", "paused", "leaving", "stopped"])
tables = st.dictionaries(st.integers(0, 8), st.tuples(heads, phases, st.sampled_from([MADDRS, []])), max_size=9).map(
    lambda table: {PEERS[number]: a_record(number, *fields) for number, fields in table.items()}
)


def test_alone_we_are_where_we_are() -> None:
    assert seen() == seen(a_record(0)) == SwarmView(outer_step=5, ahead=[])


def test_companions_stand_where_we_stand_and_can_be_dialled() -> None:
    found = seen(
        a_record(1),
        a_record(2, maddrs=[]),
        a_record(3, Head(4, digest("before"), 80)),
        a_record(4, Head(5, digest("beside"), 100)),
        a_record(5, phase="leaving"),
    )
    assert dict(found.companions) == {PEERS[1]: MADDRS}
    assert found.reachable.keys() == {PEERS[1], PEERS[3], PEERS[4]}
    assert found.peers == 4


def test_the_heaviest_history_comes_first() -> None:
    two_ahead, one_ahead, more_work = Head(7, digest("a"), 140), Head(6, digest("b"), 120), Head(4, digest("c"), 150)
    found = seen(a_record(1, one_ahead), a_record(2, two_ahead), a_record(3, more_work), a_record(4))
    assert list(found.ahead) == [PEERS[3], PEERS[2], PEERS[1]]
    assert list(seen(a_record(1, one_ahead, maddrs=[])).ahead) == [], "nobody to download from"


def test_of_two_histories_of_one_weight_the_lower_digest_comes_first() -> None:
    lower, higher = sorted((digest("ours"), digest("theirs")))
    found = seen(a_record(1, Head(7, higher, 140)), a_record(2, Head(7, lower, 140)))
    assert heavier(Head(7, lower, 140), Head(7, higher, 140))
    assert list(found.ahead) == [PEERS[2], PEERS[1]]


def test_peers_that_leave_are_not_counted() -> None:
    found = seen(a_record(1, phase="leaving"), a_record(2, phase="stopped"), a_record(3, phase="paused"), a_record(4))
    assert (found.peers, dict(found.phases)) == (2, {"paused": 1, "training": 1})


def test_the_swarm_stands_where_most_stand() -> None:
    six, seven = Head(6, digest("six"), 120), Head(7, digest("seven"), 140)
    assert seen(a_record(1, six), a_record(2, six), a_record(3, seven)).outer_step == 6
    assert seen(a_record(1, six), a_record(3, seven)).outer_step == 7, "the highest of equals"
    assert seen(a_record(1, Head(3, digest("x"), 60))).outer_step == 3, "though we are further"


def test_a_fork_shows_where_we_have_been() -> None:
    past = {4: digest("before"), 5: HEAD.digest}
    same, other = Head(4, digest("before"), 80), Head(4, digest("beside"), 80)
    assert not seen(a_record(1, same), a_record(2), past=past).forked
    assert seen(a_record(1, same), a_record(2, other), past=past).forked
    assert not seen(a_record(2, Head(9, digest("ahead"), 500)), past=past).forked
    assert not seen(a_record(1, other)).forked, "unless we remember, we cannot tell"


@given(tables, heads)
def test_whatever_they_say(records: dict[str, PeerRecord], head: Head) -> None:
    found = view(records, OURSELVES, head)
    claims = {peer: Head(record.outer_step, record.digest, record.work) for peer, record in records.items()}
    live = {peer for peer, one in records.items() if peer != OURSELVES and one.phase not in ("leaving", "stopped")}
    assert found.peers == len(live) == sum(found.phases.values())
    assert found.reachable.keys() == {peer for peer in live if records[peer].maddrs}
    assert found.companions.keys() == {peer for peer in found.reachable if claims[peer] == head}
    assert set(found.ahead) == {peer for peer in found.reachable if heavier(claims[peer], head)}
    assert not set(found.ahead) & found.companions.keys()
    for one, other in zip(found.ahead, found.ahead[1:], strict=False):
        assert not heavier(claims[other], claims[one])
    counts = Counter(records[peer].outer_step for peer in live)
    if counts:
        assert counts[found.outer_step] == max(counts.values())


@given(tables, heads, st.randoms())
def test_the_order_of_records_does_not_matter(
    records: dict[str, PeerRecord], head: Head, shuffle: random.Random
) -> None:
    items = list(records.items())
    shuffle.shuffle(items)
    one, other = view(records, OURSELVES, head), view(dict(items), OURSELVES, head)
    assert (one.peers, one.phases, one.outer_step, one.companions) == (
        other.peers, other.phases, other.outer_step, other.companions,
    )  # fmt: skip
    assert set(one.ahead) == set(other.ahead)


def test_who_says_goodbye_and_who_missed_the_last_outer_step() -> None:
    found = seen(
        a_record(1, phase="leaving"),
        a_record(2, phase="stopped"),
        a_record(3, Head(4, digest("before"), 80)),
        a_record(4, Head(3, digest("long before"), 60)),
        a_record(5),
        a_record(0, phase="leaving"),
    )
    assert sorted(found.left) == sorted(PEERS[1:3])
    assert sorted(found.live) == sorted(PEERS[3:6])
    assert found.missing == 1
