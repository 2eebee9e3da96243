"""Parts and chunks cover the vector: each value once, in order."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.rounds.partition import CHUNK_VALUES, chunks, partition


def indices(slices: list[slice]) -> list[int]:
    return [index for one in slices for index in range(one.start, one.stop)]


@given(st.integers(0, 500), st.integers(1, 70))
def test_parts_cover_the_vector_and_are_of_one_length_or_the_next(values: int, parts: int) -> None:
    cut = partition(values, parts)
    assert len(cut) == parts
    assert indices(cut) == list(range(values))
    lengths = [one.stop - one.start for one in cut]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


@given(st.integers(0, 10**12), st.integers(1, 64))
def test_large_vectors_are_cut_exactly(values: int, parts: int) -> None:
    cut = partition(values, parts)
    assert sum(one.stop - one.start for one in cut) == values
    assert (cut[0].start, cut[-1].stop) == (0, values)
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


@pytest.mark.parametrize("values, parts", [(-1, 1), (1, 0), (1, -1)])
def test_what_cannot_be_cut_is_refused(values: int, parts: int) -> None:
    with pytest.raises(ValueError, match="cannot cut"):
        partition(values, parts)
