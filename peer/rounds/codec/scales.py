"""Scales of two bytes: bfloat16, the upper half of a float32, and never subnormal."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from peer.rounds.codec.interface import CodecError

SCALE_BYTES = 2
LEAST = 2.0**-126
"""The least scale above zero: below it arithmetic depends on whether a machine flushes subnormals to zero."""
MOST = (2.0 - 2.0**-7) * 2.0**127
"""The largest bfloat16."""
_LEAST_BITS, _INFINITY_BITS = 0x0080, 0x7F80


def round_scales(exact: torch.Tensor) -> torch.Tensor:
    """The nearest scales, float32, to ``exact``: float32 or float64, finite, at least 0; same shape.

    What is not zero stays at least LEAST, so that a scale of zero always means zeros.
    """
    nearest = exact.float().bfloat16().float().clamp_(LEAST, MOST)
    return torch.where(exact > 0, nearest, torch.zeros_like(nearest))


def write_scales(scales: torch.Tensor) -> NDArray[np.uint16]:
    """Little-endian uint16 of ``round_scales``; same shape."""
    return (scales.contiguous().numpy().view(np.uint32) >> 16).astype("<u2")


def read_scales(written: NDArray[np.uint16]) -> NDArray[np.float32]:
    """float32 of little-endian uint16, same shape. Raises CodecError for what ``write_scales`` never writes."""
    bits = written.astype(np.uint32)
    wrong = (bits != 0) & ((bits < _LEAST_BITS) | (bits >= _INFINITY_BITS))
    if wrong.any():
        raise CodecError(f"a scale of {(bits[wrong][:1] << 16).view(np.float32)[0]}")
    return (bits << 16).view(np.float32)
