"""The chain of commits: what continues it, what is refused, and which of two histories is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.history import Certificate, Head, History, HistoryError, check_chain, check_step, heavier
from tests.chain import GENESIS, PEERS, RUN_ID, a_chain, certified, digest

heads = st.builds(Head, st.integers(0, 3), st.integers(0, 3).map(digest), st.integers(0, 3))


def test_a_chain_leads_to_its_head() -> None:
    chain = a_chain({0: 3, 1: 4}, {0: 1, 1: 1, 2: 1}, {1: 5, 2: 5})
    history = History(RUN_ID, GENESIS)
    assert (history.head, history.participants) == (Head(0, GENESIS, 0), None)
    for one in chain:
        history.append(one)
    assert history.head == Head(3, chain[-1].link.digest, 20) == check_chain(RUN_ID, Head(0, GENESIS, 0), None, chain)
    assert history.participants == {PEERS[1]: 5, PEERS[2]: 5}
    assert history.since(1) == chain[1:]
    assert history.since(0, limit=2) == chain[1:]
    assert history.since(3) == []


def test_a_history_keeps_its_newest_links() -> None:
    chain = a_chain(*({0: 1} for _ in range(6)))
    history = History(RUN_ID, GENESIS, keep=4)
    for one in chain:
        history.append(one)
    assert history.certificates == chain[2:]
    history = History(RUN_ID, GENESIS, keep=4)
    history.adopt(chain)
    assert history.certificates == chain[2:]
    assert history.head.outer_step == 6


def damaged(chain: list[Certificate], index: int, **fields: Any) -> list[Certificate]:
    """The chain with one link changed, and signed anew by those who had signed it."""
    link = chain[index].link.model_copy(update=fields)
    voters = [PEERS.index(peer) for peer in chain[index].voters()]
    return [*chain[:index], certified(link, voters), *chain[index + 1 :]]


def signed_by(chain: list[Certificate], index: int, *voters: int) -> list[Certificate]:
    return [*chain[:index], certified(chain[index].link, voters), *chain[index + 1 :]]


@pytest.mark.parametrize(
    "change, reason",
    [
        pytest.param(lambda chain: damaged(chain, 2, outer_step=4), "does not continue", id="a-step-skipped"),
        pytest.param(lambda chain: damaged(chain, 2, outer_step=2), "does not continue", id="a-step-repeated"),
        pytest.param(lambda chain: damaged(chain, 1, previous=digest("x")), "does not continue", id="another-past"),
        pytest.param(lambda chain: damaged(chain, 0, digest=digest("x")), "does not continue", id="another-state"),
        pytest.param(lambda chain: [chain[0], chain[2]], "does not continue", id="a-link-left-out"),
        pytest.param(lambda chain: [chain[0], chain[0]], "does not continue", id="a-link-twice"),
        pytest.param(lambda chain: damaged(chain, 1, work=11), "counts its work wrongly", id="too-much-work"),
        pytest.param(
            lambda chain: damaged(chain, 1, participants={PEERS[0]: 1}), "counts its work", id="less-work-done"
        ),
        pytest.param(lambda chain: signed_by(chain, 1, 2, 3, 4), "signed by 0 of 3", id="signed-by-strangers"),
        pytest.param(lambda chain: signed_by(chain, 1, 0, 3, 4), "signed by 1 of 3", id="signed-by-too-few"),
        pytest.param(lambda chain: signed_by(chain, 1, 0, 0, 0), "signed by 1 of 3", id="signed-often-by-one"),
    ],
)
def test_a_link_that_does_not_continue_is_refused(
    change: Callable[[list[Certificate]], list[Certificate]], reason: str
) -> None:
    before = a_chain({0: 1, 1: 1, 5: 1}, {0: 3, 1: 4, 2: 0}, {0: 2, 1: 2, 2: 0})
    # The first participants are 0, 1 and 5: two of them must sign the second link.
    start = Head(0, GENESIS, 0)
    assert check_chain(RUN_ID, start, None, before).outer_step == 3
    with pytest.raises(HistoryError, match=reason):
        check_chain(RUN_ID, start, None, change(before))
    history = History(RUN_ID, GENESIS)
    with pytest.raises(HistoryError, match=reason):
        for one in change(before):
            history.append(one)


def test_a_chain_of_nothing_or_of_another_run_is_refused() -> None:
    start = Head(0, GENESIS, 0)
    with pytest.raises(HistoryError, match="no links"):
        check_chain(RUN_ID, start, None, [])
    theirs = a_chain({0: 1}, {0: 1}, run_id="other@0")
    with pytest.raises(HistoryError, match="another run"):
        check_chain(RUN_ID, start, None, theirs)
    with pytest.raises(HistoryError, match="another run"):
        check_chain(RUN_ID, start, None, [*a_chain({0: 1}), theirs[1]])
    history = History(RUN_ID, GENESIS)
    with pytest.raises(HistoryError, match="other@0"):
        history.append(theirs[0])
    assert history.head == start


def test_a_newcomer_believes_the_newest_links_from_a_quorum_of_their_own_on() -> None:
    chain = a_chain({0: 1, 1: 1, 2: 1}, {0: 1, 1: 1, 2: 1, 3: 1}, {0: 1, 1: 1, 2: 1, 3: 1})
    nowhere = Head(0, digest("unknown"), 0)
    assert check_chain(RUN_ID, nowhere, None, chain[1:]) == Head(3, chain[-1].link.digest, 11)
    forged = [certified(one.link, [7, 8, 9]) for one in chain[1:]]
    with pytest.raises(HistoryError, match="signed by"):
        check_chain(RUN_ID, nowhere, None, forged)
    overdrawn = damaged(chain, 2, work=3)[2:]
    with pytest.raises(HistoryError, match="counts its work wrongly"):
        check_chain(RUN_ID, nowhere, None, overdrawn)


def test_an_isolated_link_is_signed_by_its_own_participants() -> None:
    start, before = Head(0, GENESIS, 0), {PEERS[5]: 1, PEERS[6]: 1, PEERS[7]: 1}
    plain = a_chain({0: 1, 1: 1})[0]
    with pytest.raises(HistoryError, match="signed by 0 of 3"):
        check_step(start, before, plain)
    isolated = plain.link.model_copy(update={"isolated": True})
    check_step(start, before, certified(isolated, [0, 1]))
    with pytest.raises(HistoryError, match="signed by 1 of 2"):
        check_step(start, before, certified(isolated, [0]))


# -- where two histories meet --------------------------------------------------------------------------------------


@given(heads, heads)
def test_one_of_two_different_histories_is_heavier(one: Head, other: Head) -> None:
    assert not heavier(one, one)
    if one != other:
        assert heavier(one, other) is not heavier(other, one)
    if one.work != other.work:
        assert heavier(one, other) is (one.work > other.work)


@given(heads, heads, heads)
def test_heavier_is_an_order(one: Head, other: Head, third: Head) -> None:
    if heavier(one, other) and heavier(other, third):
        assert heavier(one, third)
