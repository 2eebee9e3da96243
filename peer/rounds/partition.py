"""Cutting the flat vector into parts, one for each reducer, and parts into chunks."""

from __future__ import annotations

from itertools import pairwise

CHUNK_VALUES = 1 << 17
"""Values per message: 512 KiB of float32, large enough to fill a link and small enough to interleave."""


def partition(values: int, parts: int) -> list[slice]:
    """Cuts ``values`` into ``parts`` contiguous slices whose lengths differ by at most one. Early ones are longer."""
    if values < 0 or parts < 1:
        raise ValueError(f"cannot cut {values} values into {parts} parts")
    short, longer = divmod(values, parts)
    edges = [short * index + min(index, longer) for index in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def chunks(part: slice, size: int = CHUNK_VALUES) -> list[slice]:
    """Cuts a part into chunks of ``size`` values, the last one shorter."""
    return [slice(start, min(start + size, part.stop)) for start in range(part.start, part.stop, size)]
