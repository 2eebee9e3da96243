"""Two different links never both get a certificate for one outer step: the ballots, checked as a model.

The model has the decisions of ``verdict`` and ``history`` in it and nothing else of them; around these it plays the
members and leaders of ``attempt.py`` and ``leader.py`` with every message late, lost or last, and peers restarted:

- a member sits at one table at a time; its ``Ready`` says what it promised and accepted;
- the leader forms a group with a quorum of the acceptors, in a ballot above all it heard of, and completes what was
  accepted in the highest ballot, or makes a new link;
- a member that hears of the group promises its ballot, unless it promised as much before;
- **members vote once a quorum has promised**: a vote that the next quorum's promises do not rule out could be found
  again in a higher ballot than the link that was committed meanwhile;
- a quorum of votes is a certificate, whether or not anybody lives to see it.

The first link and isolated ones are left out: there nothing is promised (docs/adr/0002).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations, product
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule

from peer.rounds.messages import Accepted, Voted
from peer.rounds.verdict import certify, next_ballot, to_finish
from swarm.history import Ballot, Link, Vote, is_quorum, may_go_on
from tests.chain import PEERS, RUN_ID, digest, identity

Key = tuple[int, int]
"""A ballot: its number, and its leader's place in PEERS."""


class Peer(NamedTuple):
    """What one peer knows of this outer step. accepted: a ballot, and the number of a link."""

    promised: Key | None = None
    accepted: tuple[Key, int] | None = None
    forgetful: bool = False


RESTARTED = Peer(forgetful=True)


# Pure functions of the product, remembered: the exhaustive test asks the same things very often.


@cache
def ballot(key: Key) -> Ballot:
    return Ballot(number=key[0], leader=PEERS[key[1]])


@cache
def link(number: int) -> Link:
    return Link(
        run_id=RUN_ID, outer_step=4, previous=digest("head"), digest=digest(number),
        participants={PEERS[0]: 1}, work=1,
    )  # fmt: skip


@cache
def voted(key: Key, number: int, voter: int) -> Voted:
    return Voted(link=link(number), vote=Vote.sign(identity(voter), ballot(key), link(number)))


@cache
def certified(key: Key, number: int, acceptors: int, voters: frozenset[int], forgetful: frozenset[int]) -> bool:
    votes = {PEERS[voter]: voted(key, number, voter) for voter in voters}
    previous = {PEERS[acceptor]: 1 for acceptor in range(acceptors)}
    return certify(votes, ballot(key), previous, [PEERS[one] for one in forgetful]) is not None


@cache
def quorum(acceptors: int, members: frozenset[int], forgetful: frozenset[int]) -> bool:
    return is_quorum(PEERS[:acceptors], [PEERS[one] for one in members], [PEERS[one] for one in forgetful])


@cache
def allowed(acceptors: int, members: frozenset[int], forgetful: frozenset[int]) -> bool:
    previous = {PEERS[acceptor]: 1 for acceptor in range(acceptors)}
    standing = may_go_on(
        previous, [PEERS[one] for one in members], min_group_size=2, waited=0.0, isolation_seconds=1.0,
        forgetful=[PEERS[one] for one in forgetful],
    )  # fmt: skip
    return standing.allowed


@cache
def formed(
    acceptors: int, leader: int, own: Key | None, readies: frozenset[tuple[int, Peer]]
) -> tuple[Key, int | None]:
    """The ballot of a group, and the link to finish. own: what the leader's own peer promised."""
    promised = [ballot(peer.promised) for _, peer in readies if peer.promised is not None]
    made = next_ballot(promised + ([ballot(own)] if own else []), PEERS[leader])
    held = {PEERS[one]: peer.accepted for one, peer in readies if peer.accepted is not None}
    accepted = {one: Accepted(ballot=ballot(key), link=link(number)) for one, (key, number) in held.items()}
    members, previous = [PEERS[one] for one, _ in readies], {PEERS[one]: 1 for one in range(acceptors)}
    finish = to_finish(accepted, members, previous, [PEERS[one] for one, peer in readies if peer.forgetful])
    if finish is None:
        return (made.number, leader), None
    return (made.number, leader), next(number for _, number in held.values() if link(number) == finish[0])


# -- every schedule of a few ballots -------------------------------------------------------------------------------

Peers = tuple[Peer, ...]
State = tuple[Peers, int | None, int]
"""The peers, the link that has a certificate, and how many restarts there were."""


def changed(peers: Peers, changes: dict[int, Peer]) -> Peers:
    return tuple(changes.get(one, peer) for one, peer in enumerate(peers))


def renamed(state: State) -> State:
    """The same state with the links numbered as they appear: what differs in names only is looked at once."""
    peers, certificate, restarts = state
    names: dict[int, int] = {}
    for number in [certificate, *(peer.accepted[1] for peer in peers if peer.accepted)]:
        if number is not None:
            names.setdefault(number, len(names))
    peers = tuple(
        Peer(peer.promised, (peer.accepted[0], names[peer.accepted[1]]), peer.forgetful) if peer.accepted else peer
        for peer in peers
    )
    return peers, None if certificate is None else names[certificate], restarts


def groups(peers: Peers) -> Iterator[tuple[frozenset[int], frozenset[int], Key, int]]:
    """Every group that may form: members, those of them who forgot, ballot, link."""
    everyone = range(len(peers))
    for size in range(1, len(peers) + 1):
        for members in map(frozenset, combinations(everyone, size)):
            forgetful = frozenset(one for one in members if peers[one].forgetful)
            if allowed(len(peers), members, forgetful):
                readies = frozenset((one, peers[one]) for one in members)
                for leader in everyone:  # it need not be ready itself
                    key, finish = formed(len(peers), leader, peers[leader].promised, readies)
                    yield members, forgetful, key, 9 if finish is None else finish


def after_ballot(state: State, *, last: bool) -> Iterator[State]:
    """All that one ballot can lead to. last: only what can still end in a certificate."""
    peers, certificate, restarts = state
    for members, forgetful, key, number in groups(peers):
        # Each member has heard nothing, promised, or promised and voted.
        for fates in product((2,) if last else (0, 1, 2), repeat=len(members)):
            told = frozenset(one for one, fate in zip(members, fates, strict=True) if fate)
            voters = frozenset(one for one, fate in zip(members, fates, strict=True) if fate == 2)
            if voters and not quorum(len(peers), told, forgetful):
                continue
            assert all(key > (peers[one].promised or (0, 0)) for one in told)
            changes = {
                one: Peer(key, (key, number) if one in voters else peers[one].accepted, peers[one].forgetful)
                for one in told
            }
            made = certificate
            if certified(key, number, len(peers), voters, forgetful):
                assert certificate in (None, number), f"two links: {state}, then {key} of {voters} for {number}"
                made = number
            yield changed(peers, changes), made, restarts


def after_restart(state: State, most: int) -> Iterator[State]:
    peers, certificate, restarts = state
    if restarts < most:
        for one in range(len(peers)):
            yield changed(peers, {one: RESTARTED}), certificate, restarts + 1


@pytest.mark.parametrize("acceptors, rounds, restarts", [(3, 3, 2), (4, 2, 1)])
def test_every_schedule_of_a_few_ballots_is_safe(acceptors: int, rounds: int, restarts: int) -> None:
    states: set[State] = {((Peer(),) * acceptors, None, 0)}
    outcomes: set[int | None] = set()
    for number in range(rounds):
        reached = set(states)
        for _ in range(restarts):
            reached |= {renamed(after) for state in reached for after in after_restart(state, restarts)}
        last = number == rounds - 1
        states = {renamed(after) for state in reached for after in after_ballot(state, last=last)}
        outcomes |= {certificate for _, certificate, _ in states}
    print(f"{len(states)} states after {rounds} ballots of {acceptors} acceptors")
    assert outcomes == {None, 0}, "both ends were seen"
    assert len(states) > 1000


# -- long walks, with tables that overlap --------------------------------------------------------------------------


@dataclass
class Attempt:
    """A group that was formed. told: members that promised its ballot. votes: members that voted."""

    members: frozenset[int]
    forgetful: frozenset[int]
    key: Key
    number: int
    told: set[int] = field(default_factory=set)
    votes: set[int] = field(default_factory=set)


some = st.sets(st.integers(0, 5), max_size=4)


class Ballots(RuleBasedStateMachine):
    """Three to five acceptors and a newcomer; groups form while others have not ended."""

    attempts: Bundle[Attempt] = Bundle("attempts")

    @initialize(acceptors=st.sampled_from([3, 3, 4, 5]))
    def begin(self, acceptors: int) -> None:
        self.acceptors = acceptors
        self.peers = [Peer() for _ in range(acceptors + 1)]
        self.seats: dict[int, Attempt] = {}
        self.certificates: set[int] = set()
        self.links = 0

    @rule(target=attempts, leader=st.integers(0, 5), absent=some, unheard=some, silent=some)
    def form(self, leader: int, absent: set[int], unheard: set[int], silent: set[int]) -> Attempt:
        """Whoever is not absent leaves its table, sits down here and is ready; some hear of it and vote at once."""
        leader %= len(self.peers)
        members = frozenset(range(len(self.peers))) - absent
        forgetful = frozenset(one for one in members if self.peers[one].forgetful)
        readies = frozenset((one, self.peers[one]) for one in members)
        key, finish = formed(self.acceptors, leader, self.peers[leader].promised, readies)
        if not allowed(self.acceptors, members, forgetful):
            return Attempt(frozenset(), forgetful, key, 0)  # they wait in vain
        self.links += 1
        attempt = Attempt(members, forgetful, key, self.links if finish is None else finish)
        self.seats.update(dict.fromkeys(members, attempt))
        self.tell(attempt, unheard)
        self.vote(attempt, silent)
        return attempt

    @rule(attempt=attempts, unheard=some)
    def tell(self, attempt: Attempt, unheard: set[int]) -> None:
        """The group reaches members late, if they still sit there."""
        for one in attempt.members - unheard:
            peer = self.peers[one]
            if self.seats.get(one) is attempt and (peer.promised is None or attempt.key > peer.promised):
                self.peers[one] = peer._replace(promised=attempt.key)
                attempt.told.add(one)

    @rule(attempt=attempts, silent=some)
    def vote(self, attempt: Attempt, silent: set[int]) -> None:
        """Members that know of a quorum of promises accept the link; their votes reach the leader."""
        if not quorum(self.acceptors, frozenset(attempt.told), attempt.forgetful):
            return
        for one in attempt.told - silent:
            if self.seats.get(one) is attempt:
                self.peers[one] = self.peers[one]._replace(accepted=(attempt.key, attempt.number))
                attempt.votes.add(one)
        if certified(attempt.key, attempt.number, self.acceptors, frozenset(attempt.votes), attempt.forgetful):
            self.certificates.add(attempt.number)
        assert len(self.certificates) <= 1

    @rule(who=st.integers(0, 5))
    def restart(self, who: int) -> None:
        """It forgets what it promised and accepted, be it after it saw the commit."""
        who %= len(self.peers)
        self.peers[who] = RESTARTED
        self.seats.pop(who, None)


TestBallots = Ballots.TestCase
TestBallots.settings = settings(max_examples=250, stateful_step_count=25)
