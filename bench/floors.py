"""The least seconds that an all-reduce can take on given links, whatever program makes it. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from peer.rounds.codec import CODECS
from peer.rounds.partition import CHUNK_VALUES, chunks

MBIT = 125_000
"""Bytes per second."""
_HALVINGS = 60
Rates = Sequence[tuple[float, float]]
"""Mbit/s up and down of each peer."""


def encoded_bytes(codec: str, values: int) -> tuple[int, int]:
    """What ``values`` take as a contribution and as a mean: the payloads alone."""
    made = CODECS[codec]()
    sample = torch.randn(CHUNK_VALUES, generator=torch.Generator().manual_seed(0))
    sizes = [chunk.stop - chunk.start for chunk in chunks(slice(0, values))]
    each = {size: (len(made.encode(sample[:size])), len(made.for_mean.encode(sample[:size]))) for size in set(sizes)}
    return sum(each[size][0] for size in sizes), sum(each[size][1] for size in sizes)


def floor_seconds(contribution_bytes: float, mean_bytes: float, rates: Rates) -> float:
    """Each peer reduces a part of the vector, the parts divided in the best way for these rates.

    A peer with the part p sends its contribution to the other parts and n - 1 means of its own, and receives n - 1
    contributions to its own part and the means of the others. Where all are alike: 2 (n - 1) / n bytes / rate
    (Patarasuk and Yuan 2009).
    """
    low, high = 0.0, 1.0
    while not _possible(high, contribution_bytes, mean_bytes, rates):
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _possible(middle, contribution_bytes, mean_bytes, rates):
            high = middle
        else:
            low = middle
    return high


def _possible(seconds: float, contribution: float, mean: float, rates: Rates) -> bool:
    """Whether there are parts that add up to one with which everybody is done in time."""
    others = len(rates) - 1
    least = most = 0.0
    for up, down in rates:
        low, high = 0.0, 1.0
        # bytes = start + part * slope <= budget, one way and the other
        for start, slope, budget in (
            (contribution, others * mean - contribution, seconds * up * MBIT),
            (mean, others * contribution - mean, seconds * down * MBIT),
        ):
            if slope > 0:
                high = min(high, (budget - start) / slope)
            elif slope < 0:
                low = max(low, (budget - start) / slope)
            elif start > budget * (1 + 1e-9):
                return False
        if high < low:
            return False
        least, most = least + low, most + high
    return least <= 1 + 1e-9 and most >= 1 - 1e-9
