"""Cutting the flat vector into parts, one for each reducer, and parts into chunks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

CHUNK_VALUES = 1 << 16
"""Values per message: 256 KiB of float32, large enough to fill a link and small enough for a pipeline."""


def partition(lengths: Sequence[int]) -> list[slice]:
    """Contiguous slices of these lengths, one after the other."""
    if any(length < 0 for length in lengths):
        raise ValueError(f"no part has a length of {min(lengths)}")
    return [slice(start, stop) for start, stop in pairwise([0, *accumulate(lengths)])]


def chunks(part: slice, size: int = CHUNK_VALUES) -> list[slice]:
    """Cuts a part into chunks of ``size`` values, the last one shorter."""
    return [slice(start, min(start + size, part.stop)) for start in range(part.start, part.stop, size)]
