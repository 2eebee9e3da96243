"""What a round comes to: whose contributions count, which ballot is next, and which link the votes commit."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.rounds.messages import Accepted, Ready, Voted
from peer.rounds.verdict import (
    MAX_BALLOT_JUMP,
    Report,
    certify,
    check_ballot,
    check_finish,
    check_ready,
    include,
    next_ballot,
    to_finish,
)
from swarm.history import Ballot, Head, Link, Vote, acceptors_of, check_step, is_quorum
from tests.chain import PEERS, RUN_ID, digest, identity

HEAD = Head(3, digest("head"), 100)
NAMES = PEERS[:5]
BALLOT = Ballot(number=4, leader=PEERS[0])
MOST = 1000  # examples per peer

reasons = st.sampled_from(["deadline", "non-finite", "shape"])
some = st.sets(st.integers(0, 4))


def a_link(name: object = "made", *, isolated: bool = False, **fields: Any) -> Link:
    plain = Link(
        run_id=RUN_ID, outer_step=4, previous=HEAD.digest, digest=digest(name), isolated=isolated,
        participants={PEERS[0]: 8, PEERS[1]: 8, PEERS[2]: 8}, work=HEAD.work + 24,
    )  # fmt: skip
    return plain.model_copy(update=fields)


def votes_for(link: Link, voters: set[int], ballot: Ballot = BALLOT) -> dict[str, Voted]:
    return {PEERS[number]: Voted(link=link, vote=Vote.sign(identity(number), ballot, link)) for number in voters}


# -- inclusion -----------------------------------------------------------------------------------------------------


@st.composite
def exchanges(draw: st.DrawFn) -> tuple[dict[str, int], dict[str, Report]]:
    """Weights and reports as honest reducers make them, with refusals, gaps, strangers and outliers mixed in."""
    weights = draw(st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0, 1, 8]), min_size=1))
    reducers = draw(st.lists(st.sampled_from(sorted(weights)), min_size=1, unique=True))
    reports = {}
    for reducer in reducers:
        refused = draw(st.dictionaries(st.sampled_from(PEERS[:7]), reasons, max_size=2))
        gaps = draw(st.sets(st.sampled_from(NAMES), max_size=1))
        norms = {peer: draw(st.sampled_from([1.0, 2.0, 1e6])) for peer in weights if peer not in gaps | refused.keys()}
        reports[reducer] = Report(refused, norms)
    return weights, reports


def norms_of(weights: Mapping[str, int], reports: Mapping[str, Report], peers: set[str]) -> list[float]:
    return [sum(report.square_norms[peer] for report in reports.values()) for peer in peers if weights[peer]]


@given(exchanges())
def test_a_contribution_counts_whole_or_not_at_all(exchange: tuple[dict[str, int], dict[str, Report]]) -> None:
    weights, reports = exchange
    verdict = include(weights, reports, 20.0)
    assert verdict.peers | verdict.refused.keys() == weights.keys(), "everyone is judged"
    assert not verdict.peers & verdict.refused.keys()
    for report in reports.values():
        assert not verdict.peers & report.refused.keys(), "refused for one part is refused for all"
    for peer in verdict.peers:
        if weights[peer]:
            assert all(peer in report.square_norms for report in reports.values())
    for peer, reason in verdict.refused.items():
        said = [reports[reducer].refused[peer] for reducer in sorted(reports) if peer in reports[reducer].refused]
        missed = weights[peer] and any(peer not in report.square_norms for report in reports.values())
        assert reason == (said[0] if said else "malformed" if missed else "norm")
    counted = norms_of(weights, reports, set(verdict.peers))
    if len(counted) > 1:
        assert max(counted) <= 20.0**2 * sorted(counted)[len(counted) // 2]


@given(exchanges(), st.randoms())
def test_the_order_of_reports_does_not_matter(
    exchange: tuple[dict[str, int], dict[str, Report]], shuffle: random.Random
) -> None:
    weights, reports = exchange

    def shuffled(table: Mapping[str, Any]) -> dict[str, Any]:
        items = list(table.items())
        shuffle.shuffle(items)
        return dict(items)

    verdict, other = include(weights, reports, 20.0), include(shuffled(weights), shuffled(reports), 20.0)
    assert (verdict.peers, dict(verdict.refused)) == (other.peers, dict(other.refused))


def test_norms_are_those_of_the_whole_contribution() -> None:
    weights = dict.fromkeys(NAMES[:3], 8)
    one = Report({}, {NAMES[0]: 1.0, NAMES[1]: 0.0, NAMES[2]: 1.0})
    other = Report({}, {NAMES[0]: 1.0, NAMES[1]: 2.0, NAMES[2]: 900.0})
    assert include(weights, {NAMES[0]: one, NAMES[1]: other}, 20.0).refused == {NAMES[2]: "norm"}
    assert include(weights, {NAMES[0]: one}, 20.0).refused == {}


def test_who_had_nothing_to_give_still_took_part() -> None:
    weights = {NAMES[0]: 8, NAMES[1]: 0}
    verdict = include(weights, {NAMES[0]: Report({}, {NAMES[0]: 4.0})}, 20.0)
    assert (verdict.peers, verdict.refused) == (frozenset(weights), {})


# -- ballots -------------------------------------------------------------------------------------------------------

ballots = st.builds(Ballot, number=st.integers(0, 9), leader=st.sampled_from(NAMES))
held = st.builds(Accepted, ballot=ballots, link=st.sampled_from([a_link(name) for name in range(3)]))


@given(st.lists(ballots), st.sampled_from(NAMES))
def test_the_next_ballot_is_above_all_promised(promised: list[Ballot], leader: str) -> None:
    ballot = next_ballot(promised, leader)
    assert ballot.leader == leader
    assert all(ballot.key() > one.key() for one in promised)
    assert not check_ballot(ballot, max(promised, key=Ballot.key, default=None))


@given(st.dictionaries(st.sampled_from(NAMES), held), st.randoms())
def test_the_link_of_the_highest_ballot_is_finished(accepted: dict[str, Accepted], shuffle: random.Random) -> None:
    # One ballot has one link: keep the first seen.
    seen: dict[tuple[int, str], Accepted] = {}
    accepted = {peer: seen.setdefault(one.ballot.key(), one) for peer, one in accepted.items()}
    everyone = dict.fromkeys(NAMES, 1)
    finish = to_finish(accepted, NAMES, everyone, [])
    if not accepted:
        assert finish is None
        return
    assert finish is not None
    link, holders = finish
    assert link == max(accepted.values(), key=lambda one: one.ballot.key()).link
    assert holders == sorted(peer for peer, one in accepted.items() if one.link == link)
    items = list(accepted.items())
    shuffle.shuffle(items)
    assert to_finish(dict(items), NAMES, everyone, []) == finish


def test_a_group_finishes_only_what_it_can_certify() -> None:
    majority, alone = a_link("majority"), a_link("alone", isolated=True, participants={PEERS[3]: 24})
    low, high = Ballot(number=1, leader=PEERS[0]), Ballot(number=2, leader=PEERS[3])
    previous = dict.fromkeys(PEERS[:4], 1)
    accepted = {PEERS[2]: Accepted(ballot=low, link=majority), PEERS[3]: Accepted(ballot=high, link=alone)}
    assert to_finish(accepted, PEERS[2:4], previous, []) == (alone, [PEERS[3]])  # without a majority
    assert to_finish(accepted, PEERS[:3], previous, []) == (majority, [PEERS[2]])  # its maker is not there
    assert to_finish(accepted, PEERS[:3], previous, PEERS[:2]) is None  # they may have voted for yet another
    first = {PEERS[0]: Accepted(ballot=low, link=majority)}
    assert to_finish(first, PEERS[:2], None, []) == (majority, [PEERS[0]])
    assert to_finish(first, [PEERS[0], PEERS[3]], None, []) is None


@pytest.mark.parametrize(
    "link, reason",
    [
        pytest.param(a_link(), "", id="fits"),
        pytest.param(a_link(isolated=True), "", id="isolated"),
        pytest.param(a_link(outer_step=5), "malformed", id="another-step"),
        pytest.param(a_link(previous=digest("x")), "malformed", id="another-past"),
        pytest.param(a_link(work=125), "malformed", id="too-much-work"),
        pytest.param(a_link(run_id="other@0"), "run", id="another-run"),
        pytest.param(
            a_link(participants={PEERS[0]: MOST + 1}, work=HEAD.work + MOST + 1), "weight", id="absurd-weight"
        ),
    ],
)
def test_a_link_that_nobody_can_have_accepted_is_not_finished(link: Link, reason: str) -> None:
    assert check_finish(link, HEAD, RUN_ID, MOST) == reason
    ready = Ready(examples=1, promised=BALLOT, accepted=Accepted(ballot=BALLOT, link=link))
    assert check_ready(ready, None, HEAD, RUN_ID, MOST) == reason


def test_what_a_member_says_it_promised_must_be_possible() -> None:
    high, absurd = Ballot(number=5, leader=PEERS[0]), Ballot(number=5 + MAX_BALLOT_JUMP, leader=PEERS[0])

    def check(promised: Ballot | None, accepted: Ballot | None = None, ours: Ballot | None = None) -> str:
        said = Accepted(ballot=accepted, link=a_link()) if accepted else None
        return check_ready(Ready(examples=1, promised=promised, accepted=said), ours, HEAD, RUN_ID, MOST)

    assert check(None) == check(high) == check(high, BALLOT) == check(high, high) == ""
    assert check(BALLOT, high) == check(None, high) == "malformed", "it accepts only what it promised"
    assert check(absurd) == "malformed"
    assert check(absurd, ours=high) == "", "we are as far ourselves"


# -- votes ---------------------------------------------------------------------------------------------------------


@given(some, some, some, st.booleans())
def test_a_certificate_needs_a_quorum_and_holds(
    previous: set[int], voters: set[int], forgot: set[int], isolated: bool
) -> None:
    link = a_link(isolated=isolated)
    before = {PEERS[number]: 1 for number in previous} or None
    forgetful = [PEERS[number] for number in forgot]
    certificate = certify(votes_for(link, voters), BALLOT, before, forgetful)
    enough = is_quorum(acceptors_of(link, before), [PEERS[number] for number in voters], forgetful)
    assert (certificate is not None) is enough
    if certificate is not None:
        assert certificate.link == link
        assert certificate.voters() == {PEERS[number] for number in voters}
        check_step(HEAD, before, certificate)


@given(some, some, some)
def test_votes_for_different_links_do_not_add_up(previous: set[int], one: set[int], other: set[int]) -> None:
    before = {PEERS[number]: 1 for number in previous | {0, 1}}
    votes = {**votes_for(a_link("one"), one), **votes_for(a_link("other"), other - one)}
    certificate = certify(votes, BALLOT, before, [])
    sides = [one & (previous | {0, 1}), (other - one) & (previous | {0, 1})]
    assert (certificate is not None) is any(2 * len(side) > len(before) for side in sides)


@pytest.mark.parametrize("bad", ["another-ballot", "another-link", "another-voter", "a-stolen-vote"])
def test_a_vote_that_does_not_hold_does_not_count(bad: str) -> None:
    link, before = a_link(), {PEERS[number]: 1 for number in range(3)}
    votes = votes_for(link, {0, 1})
    assert certify(votes, BALLOT, before, []) is not None
    sender, signer, ballot, signed = PEERS[1], identity(1), BALLOT, link
    if bad == "another-ballot":
        ballot = Ballot(number=BALLOT.number + 1, leader=BALLOT.leader)
    elif bad == "another-link":
        signed = a_link("other")
    elif bad == "another-voter":
        signer = identity(2)  # its own, under the name of the sender
    vote = Vote(voter=PEERS[1], signature=Vote.sign(signer, ballot, signed).signature)
    if bad == "a-stolen-vote":
        vote = votes[PEERS[0]].vote  # good, but not the sender's
    assert certify({**votes, sender: Voted(link=link, vote=vote)}, BALLOT, before, []) is None
