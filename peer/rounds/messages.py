"""The messages of a round. docs/protocol.md tells the story they make.

Control messages travel between a member and the leader of an attempt (ROUND_PROTOCOL), contributions and means
between a member and each reducer (PART_PROTOCOL). Every field is typed and bounded.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from peer.rounds.bandwidth import MOST_RATE_BYTES
from swarm.history import MAX_GROUP_SIZE, Ballot, Certificate, Digest, Examples, Link, PeerIdField, Step, Vote
from swarm.wire import Message

ROUND_PROTOCOL = "/waggle/2/round"
PART_PROTOCOL = "/waggle/2/part"

RunId = Annotated[str, Field(max_length=64)]
Reason = Annotated[str, Field(max_length=32, pattern=r"^[a-z-]*$")]
Maddrs = Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=16)]
Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Values = Annotated[int, Field(ge=0, lt=1 << 40)]
Index = Annotated[int, Field(ge=0, lt=1 << 24)]
Rate = Annotated[int, Field(ge=1, le=MOST_RATE_BYTES)]


# -- member -> leader --------------------------------------------------------------------------------------------


class Join(Message):
    """I want a seat for the outer step after this state. ``forgetful``: restarted since I last took part."""

    run_id: RunId
    outer_step: Step
    digest: Digest
    maddrs: Maddrs
    forgetful: bool = False


class Progress(Message):
    """Examples done since the last commit."""

    examples: Examples


class Accepted(Message):
    """A link this member voted for and has not seen committed."""

    ballot: Ballot
    link: Link


class Ready(Message):
    """My contribution is complete, with this weight. Reports what I promised and accepted at this outer step.

    rates: bytes per second at which values came from others in my last exchanges.
    """

    examples: Examples
    promised: Ballot | None = None
    accepted: Accepted | None = None
    rates: Annotated[dict[PeerIdField, Rate], Field(max_length=MAX_GROUP_SIZE, default_factory=dict)]


class Promised(Message):
    """I take part in this group's ballot, and from now on in none below it."""


class Received(Message):
    """A reducer's report: whose contributions to its part it refused, and the squared norms of all others."""

    refused: Annotated[dict[PeerIdField, Reason], Field(max_length=MAX_GROUP_SIZE)]
    square_norms: Annotated[dict[PeerIdField, Finite], Field(max_length=MAX_GROUP_SIZE)]


class Voted(Message):
    """I computed this link, or fetched its state, and sign it."""

    link: Link
    vote: Vote


class Failed(Message):
    """I cannot complete this round; ``culprit`` is whom I waited for, if anybody."""

    reason: Reason
    culprit: PeerIdField | None = None


class Alive(Message):
    """Sent both ways while nothing else is: silence means death. ``alone``: of a leader that knows no majority."""

    alone: bool = False


# -- leader -> member --------------------------------------------------------------------------------------------


class Seated(Message):
    """You have a seat."""


class Refused(Message):
    """No seat. ``leader``: ask there instead. outer_step, digest, work: where the refusing peer stands."""

    reason: Reason
    leader: PeerIdField | None = None
    outer_step: Step = 0
    digest: Digest = "0" * 64
    work: Examples = 0


class Call(Message):
    """The swarm has done enough: finish the inner step at hand and report ready."""


class Member(Message):
    """A seat of the group. ``values``: the length of the part that it averages; 0 for one that averages nothing."""

    peer_id: PeerIdField
    maddrs: Maddrs
    examples: Examples
    values: Values

    @property
    def reducer(self) -> bool:
        """Whether it averages a part: then it must be reachable."""
        return self.values > 0


class Group(Message):
    """The group of this attempt, in the order of peer ids.

    finish: a link that somebody accepted in an earlier ballot: complete that one, exchange nothing. donors: who
    holds its state.
    """

    ballot: Ballot
    members: Annotated[list[Member], Field(min_length=1, max_length=MAX_GROUP_SIZE)]
    isolated: bool = False
    finish: Link | None = None
    donors: Annotated[list[PeerIdField], Field(max_length=MAX_GROUP_SIZE, default_factory=list)]


class Include(Message):
    """Whose contributions the mean is over, and who was refused why."""

    peers: Annotated[list[PeerIdField], Field(min_length=1, max_length=MAX_GROUP_SIZE)]
    refused: Annotated[dict[PeerIdField, Reason], Field(max_length=MAX_GROUP_SIZE)]


class Proceed(Message):
    """A quorum has promised: the link that the group is to finish may be voted for."""


class Committed(Message):
    """The outer step is made."""

    certificate: Certificate


class Aborted(Message):
    """Nothing was committed; try again. ``culprits`` are left out for a while."""

    reason: Reason
    culprits: Annotated[list[PeerIdField], Field(max_length=MAX_GROUP_SIZE, default_factory=list)]


# -- member <-> reducer ------------------------------------------------------------------------------------------


class Part(Message):
    """My contribution to your part follows, in chunks, unless ``examples`` is 0. ``values``: the part's length."""

    run_id: RunId
    outer_step: Step
    ballot: Ballot
    examples: Examples
    values: Values


class Chunk(Message):
    """Values of a contribution, encoded, in the payload."""

    index: Index


class MeanChunk(Message):
    """Values of the mean, encoded, in the payload."""

    index: Index


class MeanEnd(Message):
    """The mean of this part is complete; the squared norm of it, the same for everyone."""

    square_norm: Finite


class Again(Message):
    """The verdict leaves somebody out: what I sent of the mean is void, and it follows from the beginning."""


class Denied(Message):
    """The reducer does not take this contribution."""

    reason: Reason
