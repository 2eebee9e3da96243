"""Parts and chunks cover the vector: each value once, in order."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.rounds.partition import CHUNK_VALUES, chunks, partition


def indices(slices: list[slice]) -> list[int]:
    return [index for one in slices for index in range(one.start, one.stop)]


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=64))
def test_parts_lie_one_after_the_other_and_have_their_lengths(lengths: list[int]) -> None:
    cut = partition(lengths)
    assert [one.stop - one.start for one in cut] == lengths
    assert (cut[0].start, cut[-1].stop) == (0, sum(lengths))
    assert all(one.stop == other.start for one, other in itertools.pairwise(cut))


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 100))
def test_chunks_cover_their_part(start: int, length: int, size: int) -> None:
    cut = chunks(slice(start, start + length), size)
    assert indices(cut) == list(range(start, start + length))
    assert all(one.stop - one.start == size for one in cut[:-1])
    assert all(1 <= one.stop - one.start <= size for one in cut)


def test_an_empty_part_has_no_chunks_and_a_full_one_has_one() -> None:
    assert chunks(slice(7, 7)) == []
    assert chunks(slice(0, CHUNK_VALUES)) == [slice(0, CHUNK_VALUES)]


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        partition([2, -1])
