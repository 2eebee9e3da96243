"""When a leader calls and when it forms the group: a pure decision, with the clock passed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from swarm.history import Standing, may_go_on
from swarm.identity import PeerId

ABSENCE_SECONDS = 3.0
"""How long a leader waits for participants of the last link that neither came nor are known to be gone."""
SETTLE_SECONDS = 2.0
"""Before the first link nobody knows who belongs together: wait this long after the last arrival."""


@dataclass(frozen=True)
class Terms:
    """The manifest's terms for forming a group."""

    min_group_size: int
    max_group_size: int
    target_batch: int | None
    patience_seconds: float
    assemble_seconds: float
    isolation_seconds: float


@dataclass(frozen=True)
class Seat:
    """A member as its leader sees it. Times are of the leader's monotonic clock."""

    seated_at: float
    examples: int = 0
    ready_at: float | None = None
    forgetful: bool = False


@dataclass(frozen=True)
class Table:
    """All a leader decides by.

    previous: participants of the last link, None before the first. gone: peers known to be away. opened_at: when
    this peer began to lead; alone_since: since when it has known no majority. called_at: when it called.
    """

    seats: Mapping[PeerId, Seat]
    previous: Mapping[PeerId, int] | None
    gone: frozenset[PeerId]
    opened_at: float
    alone_since: float
    called_at: float | None = None


def longest_assembly(terms: Terms) -> float:
    """Seconds after which a leader that has a majority has formed the group, counted from the first that is ready."""
    return terms.patience_seconds + terms.assemble_seconds + ABSENCE_SECONDS + SETTLE_SECONDS


class Action(Enum):
    """What to do now."""

    WAIT = "wait"
    CALL = "call"
    FORM = "form"


@dataclass(frozen=True)
class Decision:
    """An action, whom it concerns, and why.

    isolated: there is no majority, and the isolation rule allows to go on. again_in: seconds after which the answer
    may change by itself.
    """

    action: Action
    reason: str = ""
    members: frozenset[PeerId] = frozenset()
    isolated: bool = False
    again_in: float = 1.0


def _standing(table: Table, present: frozenset[PeerId], terms: Terms, now: float) -> Standing:
    return may_go_on(
        table.previous,
        present,
        min_group_size=terms.min_group_size,
        waited=now - table.alone_since,
        isolation_seconds=terms.isolation_seconds,
        forgetful=[peer for peer, seat in table.seats.items() if seat.forgetful],
    )


def decide(table: Table, terms: Terms, now: float) -> Decision:
    """Wait, call the members, or form the group."""
    everyone = frozenset(table.seats)
    standing = _standing(table, everyone, terms, now)
    if not standing.allowed:
        return Decision(Action.WAIT, standing.reason)
    ready = frozenset(peer for peer, seat in table.seats.items() if seat.ready_at is not None)
    if table.called_at is None:
        waiting = _before_call(table, terms, ready, now)
        if waiting is not None:
            return replace(waiting, isolated=standing.isolated)
        if ready != everyone:
            return Decision(Action.CALL, isolated=standing.isolated)
    elif ready != everyone and now < table.called_at + terms.assemble_seconds:
        again = table.called_at + terms.assemble_seconds - now
        return Decision(Action.WAIT, "assembling", isolated=standing.isolated, again_in=again)
    standing = _standing(table, ready, terms, now)  # the late ones stay behind
    if not standing.allowed:
        return Decision(Action.WAIT, standing.reason)
    return Decision(Action.FORM, members=ready, isolated=standing.isolated)


def _before_call(table: Table, terms: Terms, ready: frozenset[PeerId], now: float) -> Decision | None:
    """Why it is too early to call; None when it is time."""
    seats = table.seats.values()
    done = sum(seat.examples for seat in seats)
    first_ready = min((seat.ready_at for seat in seats if seat.ready_at is not None), default=None)
    impatient = first_ready is not None and now >= first_ready + terms.patience_seconds
    reached = terms.target_batch is not None and done >= terms.target_batch
    if len(ready) < len(table.seats) and not reached and not impatient:
        again = 1.0 if first_ready is None else first_ready + terms.patience_seconds - now
        return Decision(Action.WAIT, "working", again_in=again)
    quiet_since = max(table.opened_at, *(seat.seated_at for seat in seats))
    if table.previous is None:
        if now < quiet_since + SETTLE_SECONDS and len(table.seats) < terms.max_group_size:
            return Decision(Action.WAIT, "settling", again_in=quiet_since + SETTLE_SECONDS - now)
        return None
    absent = frozenset(table.previous) - frozenset(table.seats) - table.gone
    if absent and now < table.opened_at + ABSENCE_SECONDS:
        return Decision(Action.WAIT, "absent", again_in=table.opened_at + ABSENCE_SECONDS - now)
    return None


def has_room(table: Table, joiner: PeerId, terms: Terms, leader: PeerId) -> bool:
    """Whether ``joiner`` may sit down: seats of the last participants are kept for them, and one for the leader."""
    reserved = frozenset(table.seats) | (frozenset(table.previous or ()) - table.gone) | {leader}
    return joiner in reserved or len(reserved) < terms.max_group_size
