"""How fast a donor gives: a limit that neither bursts nor falls behind itself."""

from __future__ import annotations

import pytest

from peer.state.donor import Pace

CHUNK, RATE = 1000, 10_000  # a chunk takes 0.1 s


def chunks(pace: Pace, late: float, count: int = 100, now: float = 50.0) -> float:
    """Seconds for ``count`` chunks, one after the other, with ``late`` seconds between leaving and the next."""
    began = now
    for _ in range(count):
        now = max(now, pace.due(CHUNK, now)) + late
    return now - late - began


@pytest.mark.parametrize("late", [0.0, 0.01, 0.09])
def test_lateness_does_not_add_up(late: float) -> None:
    assert chunks(Pace(RATE), late) == pytest.approx(10.0, abs=0.1)


def test_a_line_that_is_slower_than_the_limit_is_not_made_up_for() -> None:
    assert chunks(Pace(RATE), 0.5) == pytest.approx(100 * 0.1 + 99 * 0.5)


def test_there_is_no_burst_after_a_pause() -> None:
    pace = Pace(RATE)
    assert pace.due(CHUNK, 5.0) == pytest.approx(5.1)
    assert pace.due(CHUNK, 60.0) == pytest.approx(60.1)


def test_uploads_share_the_rate() -> None:
    pace = Pace(RATE)
    assert [pace.due(CHUNK, 5.0) for _ in range(4)] == pytest.approx([5.1, 5.2, 5.3, 5.4])
