"""Contributions run ahead of the mean by what the way there and back holds, and are never kept back for good."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from peer.rounds.lead import LEAD_SECONDS, LEAST_BYTES, Lead

CHUNK_BYTES = LEAST_BYTES // 4


def sent(lead: Lead, begin: int, now: float) -> int:
    """How many chunks may be on their way when ``begin`` were sent before."""
    index = begin
    while index < begin + 1000 and not lead.too_far(index, CHUNK_BYTES, now):
        index += 1
    return index


def test_at_first_a_few_chunks_may_go() -> None:
    assert sent(Lead(lift_at=9.0), 0, 0.0) == 4


def test_the_mean_makes_room_for_as_much_as_it_brings() -> None:
    lead = Lead(lift_at=9.0)
    lead.came_back(0, CHUNK_BYTES, 1.0)
    assert sent(lead, 4, 1.0) == 5
    assert sent(lead, 5, 1.0) == 5


def test_a_fast_link_may_be_further_ahead() -> None:
    lead = Lead(lift_at=9.0)
    for index in range(101):
        lead.came_back(index, CHUNK_BYTES, 1.0 + 0.01 * index)
    assert sent(lead, 101, 2.0) == 101 + round(LEAD_SECONDS * 100)


def test_the_limit_ends_when_it_is_lifted_or_time_runs_out() -> None:
    lead = Lead(lift_at=9.0)
    assert lead.too_far(4, CHUNK_BYTES, 8.9)
    assert not lead.too_far(4, CHUNK_BYTES, 9.0)
    lead.lifted = True
    assert not lead.too_far(4, CHUNK_BYTES, 0.0)


@given(st.integers(1, 1 << 22), st.lists(st.floats(0, 5), max_size=20))
def test_the_next_chunk_may_always_go_when_all_before_it_came_back(size_bytes: int, pauses: list[float]) -> None:
    lead, now = Lead(lift_at=1e9), 0.0
    for index, pause in enumerate(pauses):
        assert not lead.too_far(index, size_bytes, now)
        now += pause
        lead.came_back(index, size_bytes, now)
