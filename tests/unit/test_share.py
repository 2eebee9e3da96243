"""Which donor is told to have kept a download waiting."""

from __future__ import annotations

from collections import deque

import pytest

from peer.state.share import Share, overtaken


def share(donor: str, chunks: int, heard_at: float, owed: int) -> Share:
    return Share(donor, 100.0, heard_at, chunks, deque(range(owed)))


@pytest.mark.parametrize(
    "third, named",
    [
        (share("third", 0, 100.0, 3), True),  # nothing after its offer
        (share("third", 4, 104.0, 3), True),  # stalled half-way
        (share("third", 9, 109.5, 1), False),  # its last chunk is on its way
        (share("third", 3, 107.5, 2), False),  # slow, but it sends
        (share("third", 2, 102.0, 0), False),  # it failed, and was left and named for that
    ],
)
def test_a_stall_is_told_from_slowness(third: Share, named: bool) -> None:
    quick = [share("first", 10, 110.0, 0), share("second", 9, 109.2, 1)]
    assert [one.donor for one in overtaken([*quick, third], 110.0)] == ["third"] * named


def test_where_nobody_sent_anything_nobody_was_overtaken() -> None:
    assert overtaken([share("only", 0, 100.0, 3)], 200.0) == []


def test_what_comes_is_counted() -> None:
    one = share("one", 0, 100.0, 1)
    one.came(103.0)
    assert (one.chunks, one.heard_at) == (1, 103.0)
