"""The history of a run: a chain of commits, each signed by its group, and the one rule for adding to it.

Every commit is a ``Link``: which state it started from, which it made, who took part with how much work. A link is
committed when a **quorum** of acceptors has signed it in one ballot. The acceptors of an outer step are the
participants of the link before it, so two groups that do not know of each other cannot both reach a quorum: any two
majorities of the same acceptors share a peer, and a peer that joins a later ballot says what it accepted before
(Lamport, "Paxos Made Simple", 2001; docs/adr/0002). The only way around is ``may_go_on``'s isolation rule, for a
swarm whose majority is gone for good.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import msgpack
from pydantic import Field

from swarm.identity import Identity, PeerId, verify
from swarm.wire import Message

MAX_GROUP_SIZE = 64
"""Above this further peers wait for a seat; docs/adr/0004 sketches larger swarms."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
PeerIdField = Annotated[str, Field(min_length=40, max_length=64, pattern=r"^[1-9A-HJ-NP-Za-km-z]+$")]
Step = Annotated[int, Field(ge=0, lt=1 << 53)]
Examples = Annotated[int, Field(ge=0, lt=1 << 53)]


class Link(Message):
    """One commit.

    outer_step: the step this link makes (the first is 1). previous, digest: of the states before and after.
    participants: peer id -> examples it contributed. work: examples in the run up to and with this link.
    isolated: made under the isolation rule, without a majority of the participants before.
    """

    run_id: Annotated[str, Field(max_length=64)]
    outer_step: Step
    previous: Digest
    digest: Digest
    participants: Annotated[dict[PeerIdField, Examples], Field(min_length=1, max_length=MAX_GROUP_SIZE)]
    work: Examples
    isolated: bool = False

    def body(self) -> bytes:
        """The bytes that are hashed and signed: equal links, equal bytes."""
        fields = self.model_dump()
        fields["participants"] = sorted(fields["participants"].items())
        return bytes(msgpack.packb(sorted(fields.items())))

    def hash(self) -> str:
        """sha256 of the body, hex."""
        return hashlib.sha256(self.body()).hexdigest()


class Ballot(Message):
    """Orders the attempts at one outer step: by number, then by leader."""

    number: Annotated[int, Field(ge=0, lt=1 << 53)]
    leader: PeerIdField

    def key(self) -> tuple[int, str]:
        """What ballots compare by."""
        return self.number, self.leader


def vote_message(ballot: Ballot, link_hash: str) -> bytes:
    """What an acceptor signs."""
    return b"waggle vote 1\0" + bytes(msgpack.packb([ballot.number, ballot.leader, link_hash]))


class Vote(Message):
    """An acceptor's signature under a link, in one ballot."""

    voter: PeerIdField
    signature: Annotated[bytes, Field(min_length=64, max_length=64)]

    @classmethod
    def sign(cls, identity: Identity, ballot: Ballot, link: Link) -> Vote:
        """This peer's vote."""
        return cls(voter=identity.peer_id, signature=identity.sign(vote_message(ballot, link.hash())))

    def valid(self, ballot: Ballot, link_hash: str) -> bool:
        """Whether the signature holds."""
        return verify(self.voter, vote_message(ballot, link_hash), self.signature)


class Certificate(Message):
    """A link with the votes that committed it."""

    link: Link
    ballot: Ballot
    votes: Annotated[list[Vote], Field(min_length=1, max_length=2 * MAX_GROUP_SIZE)]

    def voters(self) -> frozenset[PeerId]:
        """The peers whose signatures hold."""
        link_hash = self.link.hash()
        return frozenset(vote.voter for vote in self.votes if vote.valid(self.ballot, link_hash))


def quorum(acceptors: Collection[PeerId]) -> int:
    """How many of ``acceptors`` make a majority."""
    return len(acceptors) // 2 + 1


def is_quorum(acceptors: Collection[PeerId], present: Collection[PeerId], forgetful: Collection[PeerId] = ()) -> bool:
    """Whether ``present`` can decide for ``acceptors``.

    ``forgetful`` peers were restarted since they last took part: they may have voted and not know it. So that every
    earlier majority is still met by somebody who remembers, enough of the others must be there as well.
    """
    here = frozenset(present) & frozenset(acceptors)
    remembering = here - frozenset(forgetful)
    majority = quorum(acceptors)
    return len(here) >= majority and len(remembering) >= len(acceptors) - majority + 1


def acceptors_of(link: Link, previous: Mapping[PeerId, int] | None) -> frozenset[PeerId]:
    """Whose votes commit ``link``: the participants of the link before; its own for the first and for isolated ones."""
    return frozenset(link.participants if previous is None or link.isolated else previous)


@dataclass(frozen=True)
class Standing:
    """Whether a group may work on the next outer step, and why not.

    acceptors: whose votes count. isolated: the isolation rule was used.
    """

    allowed: bool
    reason: str
    acceptors: frozenset[PeerId]
    isolated: bool = False


def may_go_on(
    previous: Mapping[PeerId, int] | None,
    present: Collection[PeerId],
    *,
    min_group_size: int,
    waited: float,
    isolation_seconds: float,
    forgetful: Collection[PeerId] = (),
) -> Standing:
    """THE rule of who may commit; every other place asks here.

    - Fewer than ``min_group_size`` peers wait for company. So a swarm of one works only where the manifest says
      ``min_group_size = 1``.
    - The group holds a majority of the participants of the last link; those are the acceptors. Before the first
      link the whole group is.
    - After ``isolation_seconds`` without that majority the rest may go on among themselves. The link says so
      (``isolated``), and where two histories meet, ``heavier`` decides.

    Args:
        previous: participants of the last link, None before the first one.
        waited: seconds for which this peer has been unable to form a group with a majority.
        forgetful: see ``is_quorum``.
    """
    here = frozenset(present)
    if len(here) < min_group_size:
        return Standing(False, "company", here)
    if previous is None:
        return Standing(True, "", here)
    acceptors = frozenset(previous)
    if is_quorum(acceptors, here, forgetful):
        return Standing(True, "", acceptors)
    if waited >= isolation_seconds:
        return Standing(True, "", here, isolated=True)
    return Standing(False, "majority", acceptors)


@dataclass(frozen=True)
class Head:
    """Where a history stands. A run begins at step 0 with no work."""

    outer_step: int
    digest: str
    work: int


def heavier(one: Head, other: Head) -> bool:
    """Whether ``one`` is the history to keep: more work, then more steps, then the lower digest."""
    return (one.work, one.outer_step, other.digest) > (other.work, other.outer_step, one.digest)


class HistoryError(Exception):
    """A link does not continue the chain; the message says how."""


@dataclass
class History:
    """The chain of this peer, newest last. Keeps the last ``keep`` certificates."""

    run_id: str
    genesis: str
    keep: int = 512
    certificates: list[Certificate] = field(default_factory=list)

    @property
    def head(self) -> Head:
        """The newest committed state."""
        if not self.certificates:
            return Head(0, self.genesis, 0)
        link = self.certificates[-1].link
        return Head(link.outer_step, link.digest, link.work)

    @property
    def participants(self) -> Mapping[PeerId, int] | None:
        """Who took part in the newest link; None before the first."""
        return self.certificates[-1].link.participants if self.certificates else None

    def append(self, certificate: Certificate) -> None:
        """Adds a link that continues the head. Raises HistoryError where it does not."""
        check_step(self.head, self.participants, certificate)
        if certificate.link.run_id != self.run_id:
            raise HistoryError(f"a link of the run {certificate.link.run_id}")
        self.certificates.append(certificate)
        del self.certificates[: -self.keep]

    def adopt(self, chain: Sequence[Certificate]) -> None:
        """Goes over to a downloaded chain that ``check_chain`` accepted: from the head on if it continues that."""
        if chain and _follows(self.head, chain[0].link):
            self.certificates.extend(chain)
        else:
            self.certificates = list(_standing_alone(chain))
        del self.certificates[: -self.keep]

    def restore(self, chain: Sequence[Certificate]) -> None:
        """Takes links from our own disk. They were checked before they were saved; a disk may still have changed them.

        Raises:
            HistoryError: they do not follow each other, or are of another run.
        """
        for index, one in enumerate(chain):
            if one.link.run_id != self.run_id:
                raise HistoryError(f"a link of the run {one.link.run_id}")
            if index:
                before = chain[index - 1].link
                check_link(Head(before.outer_step, before.digest, before.work), one.link)
        self.certificates = list(chain)

    def since(self, outer_step: int, limit: int = 256) -> list[Certificate]:
        """At most ``limit`` newest certificates after ``outer_step``."""
        return [one for one in self.certificates if one.link.outer_step > outer_step][-limit:]


def _follows(head: Head, link: Link) -> bool:
    return (link.outer_step, link.previous) == (head.outer_step + 1, head.digest)


def _standing_alone(chain: Sequence[Certificate]) -> Sequence[Certificate]:
    """``chain`` from the first link on that can be believed without the one before it."""
    for index, one in enumerate(chain):
        if len(one.voters() & one.link.participants.keys()) >= quorum(one.link.participants):
            return chain[index:]
    return []


def check_link(head: Head, link: Link) -> None:
    """Whether ``link`` fits on ``head``, be it committed or not. Raises HistoryError."""
    if not _follows(head, link):
        raise HistoryError(f"step {link.outer_step} does not continue step {head.outer_step}")
    if link.work != head.work + sum(link.participants.values()):
        raise HistoryError(f"step {link.outer_step} counts its work wrongly")


def check_step(head: Head, participants: Mapping[PeerId, int] | None, certificate: Certificate) -> None:
    """Whether ``certificate`` continues ``head``. Raises HistoryError."""
    link = certificate.link
    check_link(head, link)
    voters = certificate.voters()
    acceptors = acceptors_of(link, participants)
    if len(voters & acceptors) < quorum(acceptors):
        raise HistoryError(f"step {link.outer_step} is signed by {len(voters & acceptors)} of {len(acceptors)}")


def check_chain(
    run_id: str, head: Head, participants: Mapping[PeerId, int] | None, chain: Sequence[Certificate]
) -> Head:
    """Follows a downloaded chain; returns the head it leads to.

    A chain that starts right after ``head`` is checked against it. One that starts later (a newcomer gets the newest
    links only) or beside it (the heavier side of a cut) is checked from its first link on that carries a quorum of
    its own participants: the quorum of a group that has just grown was that of fewer peers, whom we do not know.

    Raises:
        HistoryError: what is wrong with which link.
    """
    if not chain:
        raise HistoryError("no links")
    if any(one.link.run_id != run_id for one in chain):
        raise HistoryError("a link of another run")
    if not _follows(head, chain[0].link):
        chain = _standing_alone(chain)
        if not chain:
            raise HistoryError("no link is signed by a majority of its own participants")
        first = chain[0].link
        head = Head(first.outer_step - 1, first.previous, first.work - sum(first.participants.values()))
        participants = None
        if head.work < 0:
            raise HistoryError(f"step {first.outer_step} counts its work wrongly")
    for one in chain:
        check_step(head, participants, one)
        head = Head(one.link.outer_step, one.link.digest, one.link.work)
        participants = one.link.participants
    return head
