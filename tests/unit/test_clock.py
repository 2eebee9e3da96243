"""How far our clock is from the swarm's: the median of what peers tell."""

from __future__ import annotations

import math

import pytest

from swarm.clock import Clock, ahead
from swarm.errors import ClockError, ExitCode
from tests.chain import PEERS


def clock(*offsets: float) -> Clock:
    return Clock(dict(zip(PEERS, offsets, strict=False)))


def test_a_peer_looks_at_its_clock_between_question_and_answer() -> None:
    assert ahead(theirs=100.0, asked=219.0, answered=221.0) == 120.0
    assert ahead(theirs=100.0, asked=39.0, answered=41.0) == -60.0
    assert [ahead(theirs, 1.0, 1.0) for theirs in (0.0, -5.0, math.nan, math.inf)] == [None] * 4


def test_one_peer_alone_cannot_move_the_median() -> None:
    assert clock().offset is None
    assert clock(0.1, 0.2, 1e9).offset == 0.2
    assert clock(-1e9, 0.1, 0.2).offset == 0.1


@pytest.mark.parametrize("offsets", [(), (14.9,), (-14.9,), (0.0, 100.0, 0.1)])
def test_within_the_limit_all_is_well(offsets: tuple[float, ...]) -> None:
    clock(*offsets).check()


@pytest.mark.parametrize(
    "offsets, words",
    [
        ((120.4,), "120 s ahead of that of the one peer that answers"),
        ((-30.0, -31.0, 0.0), "30 s behind that of the swarm (3 peers)"),
    ],
)
def test_beyond_it_the_line_says_by_how_much_and_who_says_so(offsets: tuple[float, ...], words: str) -> None:
    with pytest.raises(ClockError) as refused:
        clock(*offsets).check()
    assert str(refused.value) == f"clock: this machine's is {words}; set it, and turn on NTP to keep it right"
    assert refused.value.exit_code is ExitCode.CLOCK
