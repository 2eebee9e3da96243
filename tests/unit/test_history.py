"""Quorums, the rule of who may go on, and the links and votes that it speaks of."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from swarm.history import (
    Ballot,
    Certificate,
    Link,
    Vote,
    acceptors_of,
    is_quorum,
    may_go_on,
    quorum,
)
from tests.chain import PEERS, a_chain, digest, identity

BALLOT = Ballot(number=1, leader=PEERS[0])

groups = st.sets(st.sampled_from(PEERS[:9]), min_size=1)
some = st.sets(st.sampled_from(PEERS))
digests = st.sampled_from([digest(number) for number in range(4)])
links = st.builds(
    Link,
    run_id=st.text(max_size=64),
    outer_step=st.integers(0, 2**53 - 1),
    previous=digests,
    digest=digests,
    participants=st.dictionaries(st.sampled_from(PEERS), st.integers(0, 2**53 - 1), min_size=1, max_size=12),
    work=st.integers(0, 2**53 - 1),
    isolated=st.booleans(),
)


# -- quorums -------------------------------------------------------------------------------------------------------


@given(groups, some, some)
def test_any_two_quorums_of_the_same_acceptors_share_a_peer(
    acceptors: set[str], one: set[str], other: set[str]
) -> None:
    if is_quorum(acceptors, one) and is_quorum(acceptors, other):
        assert one & other & acceptors


@given(groups, some, some, some)
def test_a_quorum_remembers_every_earlier_majority(
    acceptors: set[str], voted: set[str], here: set[str], forgetful: set[str]
) -> None:
    assume(len(voted & acceptors) >= quorum(acceptors))
    if is_quorum(acceptors, here, forgetful):
        assert (here - forgetful) & voted & acceptors, "one that voted is here and knows it"


@given(groups, some, some)
def test_strangers_do_not_count_and_company_does_not_hurt(
    acceptors: set[str], here: set[str], forgetful: set[str]
) -> None:
    assert is_quorum(acceptors, here, forgetful) == is_quorum(acceptors, here & acceptors, forgetful)
    if is_quorum(acceptors, here, forgetful):
        assert is_quorum(acceptors, here | acceptors, forgetful)
        assert is_quorum(acceptors, here)


@given(groups, st.data())
def test_a_minority_that_forgot_does_not_stop_the_rest(acceptors: set[str], data: st.DataObject) -> None:
    forgot = data.draw(st.sets(st.sampled_from(sorted(acceptors)), max_size=quorum(acceptors) - 1))
    assert is_quorum(acceptors, acceptors, forgot)


def test_who_decides_on_a_link() -> None:
    last = {PEERS[0]: 1, PEERS[1]: 1}
    link = a_chain({2: 5})[0].link
    assert acceptors_of(link, last) == set(last)
    assert acceptors_of(link, None) == {PEERS[2]}
    assert acceptors_of(link.model_copy(update={"isolated": True}), last) == {PEERS[2]}


# -- the rule ------------------------------------------------------------------------------------------------------

LATE, SOON = 60.0, 59.9


@pytest.mark.parametrize(
    "previous, present, waited, forgetful, allowed, reason, acceptors, isolated",
    [
        pytest.param(None, [0], LATE, [], False, "company", [0], False, id="alone-at-the-start"),
        pytest.param(None, [0, 1], 0.0, [], True, "", [0, 1], False, id="two-at-the-start"),
        pytest.param(None, [0, 1], 0.0, [0, 1], True, "", [0, 1], False, id="nothing-to-forget-at-the-start"),
        pytest.param([0, 1, 2], [0, 1, 2], 0.0, [], True, "", [0, 1, 2], False, id="everyone"),
        pytest.param([0, 1, 2], [0, 1], 0.0, [], True, "", [0, 1, 2], False, id="a-majority"),
        pytest.param([0, 1, 2], [0, 1, 7], 0.0, [], True, "", [0, 1, 2], False, id="a-majority-and-a-newcomer"),
        pytest.param(
            [0, 1, 2], [0, 7, 8], SOON, [], False, "majority", [0, 1, 2], False, id="newcomers-are-no-majority"
        ),
        pytest.param([0, 1, 2], [0, 7, 8], LATE, [], True, "", [0, 7, 8], True, id="isolated-in-time"),
        pytest.param([0, 1, 2], [7, 8], LATE, [], True, "", [7, 8], True, id="isolated-without-anybody-of-before"),
        pytest.param([0, 1, 2], [0], LATE, [], False, "company", [0], False, id="isolation-needs-company-too"),
        pytest.param([0, 1], [0, 7], SOON, [], False, "majority", [0, 1], False, id="half-is-no-majority"),
        pytest.param([0, 1, 2], [0, 1], 0.0, [1], False, "majority", [0, 1, 2], False, id="one-of-two-forgot"),
        pytest.param([0, 1, 2], [0, 1, 2], 0.0, [1], True, "", [0, 1, 2], False, id="one-of-three-forgot"),
        pytest.param([0, 1, 2], [0, 1, 2], SOON, [1, 2], False, "majority", [0, 1, 2], False, id="two-of-three-forgot"),
        pytest.param([0, 1, 2], [0, 1, 2], LATE, [1, 2], True, "", [0, 1, 2], True, id="amnesia-ends-in-isolation"),
        pytest.param([0, 1], [0, 1], LATE, [], True, "", [0, 1], False, id="a-majority-is-never-isolated"),
    ],
)
def test_the_rule(
    previous: list[int] | None, present: list[int], waited: float, forgetful: list[int],
    allowed: bool, reason: str, acceptors: list[int], isolated: bool,
) -> None:  # fmt: skip
    standing = may_go_on(
        None if previous is None else {PEERS[number]: 10 for number in previous},
        [PEERS[number] for number in present],
        min_group_size=2,
        waited=waited,
        isolation_seconds=LATE,
        forgetful=[PEERS[number] for number in forgetful],
    )
    assert (standing.allowed, standing.reason, standing.isolated) == (allowed, reason, isolated)
    assert standing.acceptors == {PEERS[number] for number in acceptors}


@pytest.mark.parametrize("waited, allowed", [(0.0, False), (LATE, True)])
def test_a_swarm_of_one_is_the_majority_of_itself_only(waited: float, allowed: bool) -> None:
    def alone(previous: dict[str, int] | None) -> bool:
        return may_go_on(previous, PEERS[:1], min_group_size=1, waited=waited, isolation_seconds=LATE).allowed

    assert alone(None)
    assert alone({PEERS[0]: 1})
    assert alone({PEERS[0]: 1, PEERS[1]: 1}) is allowed


# -- links and votes -----------------------------------------------------------------------------------------------


@given(links, st.randoms())
def test_the_order_of_participants_does_not_matter(link: Link, shuffle: random.Random) -> None:
    items = list(link.participants.items())
    shuffle.shuffle(items)
    other = link.model_copy(update={"participants": dict(items)})
    assert other.body() == link.body()
    assert other.hash() == link.hash()


@given(links, links)
def test_links_are_equal_when_their_hashes_are(one: Link, other: Link) -> None:
    assert (one.hash() == other.hash()) == (one == other)


@given(links, st.data())
def test_a_change_of_any_field_changes_the_hash(link: Link, data: st.DataObject) -> None:
    someone = data.draw(st.sampled_from(sorted(link.participants)))
    changes: dict[str, Any] = {
        "run_id": link.run_id + "x",
        "outer_step": link.outer_step + 1,
        "previous": digest("another"),
        "digest": digest("another"),
        "participants": {**link.participants, someone: link.participants[someone] + 1},
        "work": link.work + 1,
        "isolated": not link.isolated,
    }
    assert changes.keys() == Link.model_fields.keys()
    for field, value in changes.items():
        assert link.model_copy(update={field: value}).hash() != link.hash(), field


@pytest.mark.parametrize(
    "fields",
    [
        {"participants": {}},
        {"participants": {f"{PEERS[0][:-3]}{number}": 1 for number in range(111, 176)}},
        {"participants": {"0OIl" * 13: 1}},
        {"participants": {PEERS[0]: -1}},
        {"participants": {PEERS[0]: True}},
        {"digest": "A" * 64},
        {"digest": digest("") + "\n"},
        {"outer_step": -1},
        {"outer_step": 1 << 53},
        {"work": 1.5},
        {"isolated": 1},
        {"run_id": "x" * 65},
        {"more": 1},
    ],
)
def test_a_link_is_bounded(fields: dict[str, Any]) -> None:
    good = a_chain({0: 1})[0].link.model_dump()
    with pytest.raises(ValidationError):
        Link.model_validate({**good, **fields})


@given(st.sets(st.integers(0, 5), max_size=6), st.sets(st.integers(0, 5), min_size=1, max_size=6))
def test_only_valid_votes_of_different_peers_count(forged: set[int], voters: set[int]) -> None:
    link = a_chain({0: 1})[0].link
    other = link.model_copy(update={"work": link.work + 1})
    good = [Vote.sign(identity(number), BALLOT, link) for number in voters]
    later = Ballot(number=2, leader=PEERS[0])
    bad = [Vote.sign(identity(number), BALLOT, other).signature for number in forged]
    bad += [Vote.sign(identity(number), later, link).signature for number in forged]
    forgeries = [Vote(voter=PEERS[number], signature=signature) for number, signature in zip(forged, bad, strict=False)]
    stolen = [Vote(voter=PEERS[number + 6], signature=good[0].signature) for number in forged]
    certificate = Certificate(link=link, ballot=BALLOT, votes=[*forgeries, *good, *good, *stolen])
    assert certificate.voters() == {PEERS[number] for number in voters}
