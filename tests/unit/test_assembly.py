"""When a leader calls and when it forms the group: any table, and the timings one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peer.rounds.assembly import (
    ABSENCE_SECONDS,
    SETTLE_SECONDS,
    Action,
    Decision,
    Seat,
    Table,
    Terms,
    decide,
    has_room,
    longest_assembly,
)
from swarm.history import is_quorum
from tests.chain import PEERS

TERMS = Terms(
    min_group_size=2,
    max_group_size=4,
    target_batch=None,
    patience_seconds=30.0,
    assemble_seconds=10.0,
    isolation_seconds=120.0,
)
BATCH = replace(TERMS, target_batch=100)
NAMES = PEERS[:6]

# Whole seconds: sums of them are exact, so that "exactly at" means it.
seconds = st.integers(0, 200).map(float)
some_terms = st.builds(
    Terms,
    min_group_size=st.integers(1, 3),
    max_group_size=st.integers(3, 6),
    target_batch=st.none() | st.integers(1, 200),
    patience_seconds=st.integers(1, 60).map(float),
    assemble_seconds=st.integers(1, 60).map(float),
    isolation_seconds=st.integers(1, 150).map(float),
)
seats = st.builds(Seat, seconds, st.integers(0, 100), st.none() | seconds, st.booleans())
tables = st.builds(
    Table,
    seats=st.dictionaries(st.sampled_from(NAMES), seats, max_size=6),
    previous=st.none() | st.dictionaries(st.sampled_from(NAMES), st.just(10), min_size=1, max_size=6),
    gone=st.frozensets(st.sampled_from(NAMES)),
    opened_at=seconds,
    alone_since=seconds,
    called_at=st.none() | seconds,
)
nows = st.integers(200, 400).map(float)  # after everything that happened


def seated(*numbers: int, at: float = 0.0, ready: float | None = 0.0, examples: int = 10) -> dict[str, Seat]:
    return {PEERS[number]: Seat(at, examples, ready) for number in numbers}


def a_table(seats: Mapping[str, Seat], previous: list[int] | None = None, **changes: object) -> Table:
    before = None if previous is None else {PEERS[number]: 10 for number in previous}
    return replace(Table(seats, before, frozenset(), opened_at=0.0, alone_since=0.0), **changes)  # type: ignore[arg-type]


def ready_of(table: Table) -> set[str]:
    return {peer for peer, seat in table.seats.items() if seat.ready_at is not None}


def forgetful_of(table: Table) -> set[str]:
    return {peer for peer, seat in table.seats.items() if seat.forgetful}


# -- any table -----------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(tables, some_terms, nows)
def test_a_group_is_large_enough_ready_and_has_a_majority_or_is_isolated(
    table: Table, terms: Terms, now: float
) -> None:
    decision = decide(table, terms, now)
    if decision.action is not Action.FORM:
        assert decision.members == frozenset()
        return
    assert len(decision.members) >= terms.min_group_size
    assert decision.members == ready_of(table), "nobody is left out who is ready, nobody taken in who is not"
    majority = table.previous is None or is_quorum(table.previous, decision.members, forgetful_of(table))
    assert decision.isolated is not majority
    if decision.isolated:
        assert now - table.alone_since >= terms.isolation_seconds


@settings(max_examples=200)
@given(tables, some_terms, nows)
def test_a_call_comes_once_and_only_when_enough_is_done(table: Table, terms: Terms, now: float) -> None:
    decision = decide(table, terms, now)
    ready = ready_of(table)
    done = sum(seat.examples for seat in table.seats.values())
    enough = terms.target_batch is not None and done >= terms.target_batch
    impatient = any(
        seat.ready_at is not None and now >= seat.ready_at + terms.patience_seconds for seat in table.seats.values()
    )
    if decision.action is Action.CALL:
        assert table.called_at is None
        assert enough or impatient
        assert ready < table.seats.keys(), "who is ready needs no call"
        assert len(table.seats) >= terms.min_group_size
    if decision.action is Action.FORM and table.called_at is None:
        assert ready == table.seats.keys()


@settings(max_examples=200)
@given(tables, some_terms, nows)
def test_every_wait_ends_when_it_says_or_needs_an_event(table: Table, terms: Terms, now: float) -> None:
    decision = decide(table, terms, now)
    if decision.action is not Action.WAIT:
        return
    assert decision.reason in {"company", "majority", "working", "settling", "absent", "assembling"}
    assert decision.again_in > 0
    if decision.reason in {"settling", "absent", "assembling"} or (decision.reason == "working" and ready_of(table)):
        later = decide(table, terms, now + decision.again_in)
        assert (later.action, later.reason) != (Action.WAIT, decision.reason)


@settings(max_examples=200)
@given(tables, some_terms, nows)
def test_who_is_all_ready_with_a_majority_is_not_kept_waiting(table: Table, terms: Terms, now: float) -> None:
    """The bound that members use to give up on a leader."""
    everyone_ready = {peer: replace(seat, ready_at=seat.seated_at) for peer, seat in table.seats.items()}
    table = replace(table, seats=everyone_ready)
    late = now + longest_assembly(terms)
    decision = decide(table, terms, late)
    majority = table.previous is None or is_quorum(table.previous, table.seats, forgetful_of(table))
    if len(table.seats) >= terms.min_group_size and majority:
        assert decision == Decision(Action.FORM, members=frozenset(table.seats))


@settings(max_examples=200)
@given(tables, some_terms, nows)
def test_isolation_is_said_wherever_it_is_used(table: Table, terms: Terms, now: float) -> None:
    decision = decide(table, terms, now)
    majority = table.previous is None or is_quorum(table.previous, table.seats, forgetful_of(table))
    if decision.isolated:
        assert now - table.alone_since >= terms.isolation_seconds
    elif decision.action is not Action.WAIT or decision.reason not in ("company", "majority"):
        assert majority


# -- the timings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "table, terms, now, expected",
    [
        pytest.param(a_table({}), TERMS, 9.0, "company", id="nobody"),
        pytest.param(a_table(seated(0)), TERMS, 999.0, "company", id="alone"),
        pytest.param(a_table(seated(0), [0, 1]), TERMS, 999.0, "company", id="alone-for-long"),
        pytest.param(a_table(seated(0, 5), [0, 1, 2]), TERMS, 119.9, "majority", id="no-majority"),
        pytest.param(a_table(seated(0, 5), [0, 1, 2]), TERMS, 120.0, Action.FORM, id="isolated"),
        # before the first link: settled after the last arrival
        pytest.param(a_table(seated(0, 1)), TERMS, SETTLE_SECONDS - 0.1, "settling", id="first-link-at-once"),
        pytest.param(a_table(seated(0, 1)), TERMS, SETTLE_SECONDS, Action.FORM, id="first-link-settled"),
        pytest.param(a_table(seated(0) | seated(1, at=5.0)), TERMS, 6.9, "settling", id="somebody-came-just-now"),
        pytest.param(a_table(seated(0) | seated(1, at=5.0)), TERMS, 7.0, Action.FORM, id="nobody-came-since"),
        pytest.param(a_table(seated(0, 1), opened_at=9.0), TERMS, 10.9, "settling", id="the-leader-came-just-now"),
        pytest.param(a_table(seated(0, 1, 2, 3)), TERMS, 0.0, Action.FORM, id="no-seat-left-to-wait-for"),
        # later: participants of the last link are waited for, unless they are known to be gone
        pytest.param(a_table(seated(0, 1), [0, 1]), TERMS, 0.0, Action.FORM, id="all-of-the-last"),
        pytest.param(a_table(seated(0, 1), [0, 1, 2]), TERMS, ABSENCE_SECONDS - 0.1, "absent", id="one-absent"),
        pytest.param(a_table(seated(0, 1), [0, 1, 2]), TERMS, ABSENCE_SECONDS, Action.FORM, id="absent-for-long"),
        pytest.param(
            a_table(seated(0, 1), [0, 1, 2], gone=frozenset(PEERS[2:3])), TERMS, 0.0, Action.FORM, id="one-known-gone"
        ),
        # a fixed number of inner steps: all are ready, or patience ends
        pytest.param(a_table(seated(0) | seated(1, ready=None), [0, 1]), TERMS, 29.9, "working", id="one-works"),
        pytest.param(a_table(seated(0) | seated(1, ready=None), [0, 1]), TERMS, 30.0, Action.CALL, id="patience-ends"),
        pytest.param(a_table(seated(0, 1, ready=None), [0, 1]), TERMS, 999.0, "working", id="nobody-ready"),
        pytest.param(
            a_table(seated(0, ready=5.0) | seated(1, ready=9.0) | seated(2, ready=None), [0, 1, 2]),
            TERMS, 35.0, Action.CALL, id="patience-counts-from-the-first",
        ),
        # a target batch: the sum of the work counts
        pytest.param(a_table(seated(0, 1, ready=None, examples=50), [0, 1]), BATCH, 0.0, Action.CALL, id="batch-done"),
        pytest.param(a_table(seated(0, 1, ready=None, examples=49), [0, 1]), BATCH, 99.0, "working", id="not-done"),
        pytest.param(a_table(seated(0, 1, examples=1), [0, 1]), BATCH, 0.0, Action.FORM, id="all-did-what-they-may"),
        pytest.param(
            a_table(seated(0, 1, ready=None, examples=50), [0, 1, 2]), BATCH, 1.0, "absent", id="batch-done-one-absent"
        ),
        # after the call
        pytest.param(
            a_table(seated(0) | seated(1, ready=None), [0, 1], called_at=40.0), TERMS, 49.9, "assembling", id="called"
        ),
        pytest.param(a_table(seated(0, 1), [0, 1], called_at=40.0), TERMS, 40.0, Action.FORM, id="called-all-ready"),
        pytest.param(
            a_table(seated(0) | seated(1, ready=None), [0, 1], called_at=40.0), TERMS, 50.0, "company", id="too-few"
        ),
        pytest.param(
            a_table(seated(0, 5) | seated(1, ready=None), [0, 1], called_at=40.0),
            TERMS, 50.0, "majority", id="ready-without-majority",
        ),
        pytest.param(
            a_table(seated(0, 1) | seated(2, ready=None), [0, 1, 2], called_at=40.0),
            TERMS, 50.0, Action.FORM, id="the-late-one-stays-behind",
        ),
    ],
)  # fmt: skip
def test_timings(table: Table, terms: Terms, now: float, expected: Action | str) -> None:
    decision = decide(table, terms, now)
    if isinstance(expected, str):
        assert (decision.action, decision.reason) == (Action.WAIT, expected)
    else:
        assert decision.action is expected
        assert decision.members == (ready_of(table) if expected is Action.FORM else frozenset())


def test_a_restarted_majority_does_not_count_until_isolation() -> None:
    forgot = {peer: replace(seat, forgetful=True) for peer, seat in seated(1, 2).items()}
    table = a_table(seated(0) | forgot, [0, 1, 2])
    assert decide(table, TERMS, 119.0).reason == "majority"
    decision = decide(table, TERMS, 120.0)
    assert (decision.action, decision.isolated) == (Action.FORM, True)


# -- room ----------------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(tables, some_terms, st.sampled_from(NAMES), st.sampled_from(NAMES))
def test_seats_are_kept_for_the_leader_and_the_last_participants(
    table: Table, terms: Terms, joiner: str, leader: str
) -> None:
    kept = {leader, *table.seats, *(set(table.previous or ()) - table.gone)}
    room = has_room(table, joiner, terms, leader)
    if joiner in kept:
        assert room, "its seat was kept"
    elif room:
        assert len(kept | {joiner}) <= terms.max_group_size, "everyone whose seat is kept still finds it"
    else:
        assert len(kept) >= terms.max_group_size


def test_a_newcomer_gets_the_seat_of_one_that_is_gone() -> None:
    table = a_table(seated(0), [0, 1, 2, 3])
    newcomer, back_again, leader = PEERS[5], PEERS[1], PEERS[0]
    assert not has_room(table, newcomer, TERMS, leader)
    assert has_room(table, back_again, TERMS, leader)
    assert has_room(replace(table, gone=frozenset(PEERS[3:4])), newcomer, TERMS, leader)
    assert has_room(replace(table, previous=None), newcomer, TERMS, leader)
