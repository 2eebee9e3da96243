"""The order in which peers are asked to lead: the same for everyone, and fair."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from peer.rounds.election import candidates, leader_order
from tests.chain import PEERS, RUN_ID

some = st.sets(st.sampled_from(PEERS))


@given(some, st.integers(0, 2**53), st.randoms())
def test_everyone_computes_the_same_order(peers: set[str], outer_step: int, shuffle: random.Random) -> None:
    order = leader_order(RUN_ID, outer_step, peers)
    assert sorted(order) == sorted(peers)
    shuffled = list(peers)
    shuffle.shuffle(shuffled)
    assert leader_order(RUN_ID, outer_step, shuffled) == order


@given(st.sets(st.sampled_from(PEERS), min_size=1), st.integers(0, 1000), st.data())
def test_who_is_missing_changes_nothing_for_the_others(peers: set[str], outer_step: int, data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(sorted(peers)))
    order = leader_order(RUN_ID, outer_step, peers)
    assert leader_order(RUN_ID, outer_step, peers - {gone}) == [peer for peer in order if peer != gone]


def test_another_process_computes_the_same_order() -> None:
    code = (
        "import sys; from peer.rounds.election import leader_order; print(*leader_order(sys.argv[1], 7, sys.argv[2:]))"
    )
    command = [sys.executable, "-R", "-c", code, RUN_ID, *PEERS]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert said == leader_order(RUN_ID, 7, PEERS)


def test_the_load_is_shared() -> None:
    steps, peers = 3000, PEERS[:6]
    first = Counter(leader_order(RUN_ID, step, peers)[0] for step in range(steps))
    # Six fair shares of 500, standard deviation 20: five of them.
    assert all(400 < first[peer] < 600 for peer in peers)
    assert leader_order("other@0", 1, PEERS) != leader_order(RUN_ID, 1, PEERS)


@given(some, some, st.sampled_from(PEERS), st.booleans())
def test_the_last_participants_lead_or_after_isolation_whoever_listens(
    previous: set[str], listening: set[str], ourselves: str, isolated: bool
) -> None:
    known = candidates(dict.fromkeys(previous, 1), listening, ourselves, isolated)
    assert candidates(None, listening, ourselves, isolated) == listening
    if isolated:
        assert known == listening
    else:
        assert known - {ourselves} == previous - {ourselves}, "all whom everyone knows, seen or not"
        assert (ourselves in known) == (ourselves in previous and ourselves in listening)
