"""What a round comes to: whose contributions count, and which link the votes commit. Pure decisions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from peer.rounds.gates import check_norms, check_weight
from peer.rounds.messages import Accepted, Ready, Voted
from swarm.history import Ballot, Certificate, Head, HistoryError, Link, acceptors_of, check_link, is_quorum
from swarm.identity import PeerId

OF_ALL_PARTS = ("norm", "malformed")
"""Reasons that only show when the reports of all reducers are together."""
MAX_BALLOT_JUMP = 1 << 40
"""More attempts at one outer step than any swarm makes."""


@dataclass(frozen=True)
class Report:
    """What one reducer says of the contributions to its part."""

    refused: Mapping[PeerId, str]
    square_norms: Mapping[PeerId, float]


@dataclass(frozen=True)
class Inclusion:
    """Whose contributions the mean is over (those of weight 0 too: they took part), and who was refused why."""

    peers: frozenset[PeerId]
    refused: Mapping[PeerId, str]


def distrusted(weights: Mapping[PeerId, int], reports: Mapping[PeerId, Report]) -> list[PeerId]:
    """Reducers that refuse more than half of what others contribute: then rather they are wrong themselves."""
    senders = {peer for peer, examples in weights.items() if examples}
    found = []
    for reducer, report in reports.items():
        others = senders - {reducer}
        if len(others) > 1 and 2 * len(others & report.refused.keys()) > len(others):
            found.append(reducer)
    return sorted(found)


def include(weights: Mapping[PeerId, int], reports: Mapping[PeerId, Report], max_norm_ratio: float) -> Inclusion:
    """All or nothing: a contribution refused for one part is refused for all."""
    refused: dict[PeerId, str] = {}
    for reducer in sorted(reports):
        for peer, reason in reports[reducer].refused.items():
            if peer in weights:
                refused.setdefault(peer, reason)
    norms: dict[PeerId, float] = {}
    for peer, examples in weights.items():
        if examples and peer not in refused:
            shares = [report.square_norms.get(peer) for report in reports.values()]
            if None in shares:
                refused[peer] = "malformed"  # a reducer neither took nor refused it
            else:
                norms[peer] = sum(share for share in shares if share is not None)
    refused.update(check_norms(norms, max_norm_ratio))
    return Inclusion(frozenset(weights) - frozenset(refused), refused)


def next_ballot(promised: Collection[Ballot], leader: PeerId) -> Ballot:
    """A ballot above all that the members have promised."""
    return Ballot(number=max((ballot.number for ballot in promised), default=0) + 1, leader=leader)


def check_finish(link: Link, head: Head, run_id: str, max_examples: int) -> str:
    """The reason not to complete a link that somebody says it accepted, or ""."""
    try:
        check_link(head, link)
    except HistoryError:
        return "malformed"
    if link.run_id != run_id:
        return "run"
    return next(filter(None, (check_weight(examples, max_examples) for examples in link.participants.values())), "")


def check_ballot(ballot: Ballot, promised: Ballot | None) -> str:
    """The reason not to believe in ``ballot``, or "": one lie must not use up the numbers that are left."""
    return "malformed" if ballot.number - (promised.number if promised else 0) > MAX_BALLOT_JUMP else ""


def check_ready(ready: Ready, ours: Ballot | None, head: Head, run_id: str, max_examples: int) -> str:
    """The reason to send a member away for what it says it promised and accepted, or "". ours: what we promised."""
    promised, accepted = ready.promised, ready.accepted
    if promised is not None and check_ballot(promised, ours):
        return "malformed"
    if accepted is None:
        return ""
    if promised is None or accepted.ballot.key() > promised.key():
        return "malformed"
    return check_finish(accepted.link, head, run_id, max_examples)


def to_finish(
    accepted: Mapping[PeerId, Accepted],
    members: Collection[PeerId],
    previous: Mapping[PeerId, int] | None,
    forgetful: Collection[PeerId],
) -> tuple[Link, list[PeerId]] | None:
    """The link that a new ballot of ``members`` must complete, with its holders: the one of the highest ballot.

    A group that holds a majority of the last participants can complete every link that was voted for by one. Others
    are left: an isolated group cannot commit what the majority began, nor the majority what an isolated group began.
    """
    able = [
        one for one in accepted.values() if is_quorum(acceptors_of(one.link, previous), members, forgetful)
    ]  # fmt: skip
    if not able:
        return None
    newest = max(able, key=lambda one: one.ballot.key())
    link_hash = newest.link.hash()
    return newest.link, sorted(peer for peer, one in accepted.items() if one.link.hash() == link_hash)


def certify(
    votes: Mapping[PeerId, Voted],
    ballot: Ballot,
    previous: Mapping[PeerId, int] | None,
    forgetful: Collection[PeerId],
) -> Certificate | None:
    """The certificate of the link that a quorum voted for, or None as yet."""
    by_link: dict[str, list[Voted]] = {}
    for peer, voted in votes.items():
        link_hash = voted.link.hash()
        if voted.vote.voter == peer and voted.vote.valid(ballot, link_hash):
            by_link.setdefault(link_hash, []).append(voted)
    for same in by_link.values():
        link = same[0].link
        voters = [voted.vote.voter for voted in same]
        if is_quorum(acceptors_of(link, previous), voters, forgetful):
            return Certificate(link=link, ballot=ballot, votes=[voted.vote for voted in same])
    return None
