"""Who is away or benched, as one peer remembers it for a while."""

from __future__ import annotations

import time

import pytest

from peer.rounds import absences
from peer.rounds.absences import Absences
from tests.chain import PEERS

ALICE, BOB, CAROL = PEERS[:3]


def test_nobody_is_away_at_first() -> None:
    known = Absences()
    assert known.known() == frozenset()
    assert not known.benched(ALICE)


def test_who_is_away_comes_back() -> None:
    known = Absences()
    known.add(ALICE)
    known.add(ALICE)
    known.add(BOB)
    assert known.known() == {ALICE, BOB}
    assert not known.benched(ALICE), "away is not benched"
    known.discard(ALICE)
    known.discard(CAROL)
    assert known.known() == {BOB}


def test_who_said_goodbye_is_back_when_its_record_lives() -> None:
    known = Absences()
    known.goodbyes({ALICE, BOB}, {CAROL})
    known.add(CAROL)  # its stream broke, which its record need not know yet
    assert known.known() == {ALICE, BOB, CAROL}
    known.goodbyes({BOB}, {CAROL})  # of ALICE there is no record at all
    assert known.known() == {ALICE, BOB, CAROL}
    known.goodbyes({BOB}, {ALICE, CAROL})
    assert known.known() == {BOB, CAROL}


def test_who_is_benched_stays_there_though_it_is_here() -> None:
    known = Absences()
    known.bench(ALICE)
    known.add(ALICE)
    known.discard(ALICE)
    assert known.benched(ALICE)
    assert known.known() == {ALICE}
    assert not known.benched(BOB)


def test_a_bench_ends() -> None:
    known = Absences()
    known.bench(ALICE, seconds=0.0)
    assert not known.benched(ALICE)
    assert known.known() == frozenset()
    known.bench(ALICE, seconds=60.0)
    assert known.benched(ALICE)


def test_an_absence_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Absences()
    known.add(BOB)
    monkeypatch.setattr(absences, "AWAY_SECONDS", 0.0)
    known.add(ALICE)
    assert known.known() == {BOB}


def test_a_majority_ends_being_alone() -> None:
    before = time.monotonic()
    known = Absences()
    assert known.alone_since >= before
    known.alone_since = before - 100.0
    known.majority()
    assert known.alone_since >= before
