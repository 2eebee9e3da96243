"""Dense codecs of few bits: integers, and one scale for each block of them.

The step of a block is its largest magnitude over the largest integer, rounded to the nearest bfloat16. That errs by
at most 2**-8 of the step, which moves the largest value by less than half a step even with 127 integers: so the
largest lands on the largest integer, and encoding what was decoded gives the same bytes. An integer of 8 bits times
a bfloat16 fits a float32: decoding is exact.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from peer.rounds.codec.interface import Codec, CodecError
from peer.rounds.codec.scales import SCALE_BYTES, read_scales, round_scales, write_scales

BLOCK_VALUES = 256
"""Values that share a scale: two bytes for so many are 0.06 bits each."""


def _blocks(count: int) -> int:
    return -(-count // BLOCK_VALUES)


def _quantise(values: torch.Tensor, largest: int) -> tuple[NDArray[np.uint16], torch.Tensor]:
    """The scales [blocks] and the integers, float32 [n], of ``values``, float32 [n]."""
    count = len(values)
    padded = torch.nn.functional.pad(values, (0, -count % BLOCK_VALUES)).view(-1, BLOCK_VALUES)
    steps = round_scales(padded.abs().amax(dim=1) / largest)
    divisors = torch.where(steps > 0, steps, torch.ones_like(steps))
    integers = (padded / divisors[:, None]).round_().clamp_(-largest, largest)
    return write_scales(steps), integers.flatten()[:count]


def _restore(written: NDArray[np.uint16], integers: NDArray[np.float32]) -> torch.Tensor:
    """float32 [n] of the scales [blocks] and the integers, float32 [blocks * BLOCK_VALUES], which it overwrites."""
    blocks = integers.reshape(-1, BLOCK_VALUES)
    with np.errstate(over="ignore"):  # what a stranger sent: the gates see the infinity
        blocks *= read_scales(written)[:, None]
    return torch.from_numpy(integers)


class Int8Codec:
    """Integers of -127 to 127. Error: half a step, at most 1/253 of the block's largest, or 2**-127."""

    name = "int8"

    @property
    def for_mean(self) -> Codec:
        """See Codec."""
        return self

    def encode(self, values: torch.Tensor) -> bytes:
        """See Codec."""
        scales, integers = _quantise(values, 127)
        return b"".join((scales.tobytes(), integers.to(torch.int8).numpy().tobytes()))

    def decode(self, payload: bytes, count: int) -> torch.Tensor:
        """See Codec."""
        if len(payload) != self.max_bytes(count):
            raise CodecError(f"{len(payload)} bytes are not {count} int8 values and their scales")
        blocks = _blocks(count)
        small = np.frombuffer(payload, np.int8, offset=SCALE_BYTES * blocks)
        if (small == -128).any():
            raise CodecError("an int8 value of -128")
        integers = np.zeros(blocks * BLOCK_VALUES, np.float32)
        integers[:count] = small
        return _restore(np.frombuffer(payload, "<u2", blocks), integers)[:count]

    def max_bytes(self, count: int) -> int:
        """See Codec. Every encoding has this size."""
        return SCALE_BYTES * _blocks(count) + count


class Int4Codec:
    """Integers of -7 to 7, two in a byte. Error: half a step, at most 1/13.9 of the block's largest, or 2**-127."""

    name = "int4"

    @property
    def for_mean(self) -> Codec:
        """See Codec."""
        return self

    def encode(self, values: torch.Tensor) -> bytes:
        """See Codec."""
        scales, integers = _quantise(values, 7)
        nibbles = integers.to(torch.int8).numpy().view(np.uint8) + np.uint8(8)  # 1 to 15
        packed = nibbles[::2].copy()
        packed[: len(nibbles) // 2] |= nibbles[1::2] << 4
        return b"".join((scales.tobytes(), packed.tobytes()))

    def decode(self, payload: bytes, count: int) -> torch.Tensor:
        """See Codec."""
        if len(payload) != self.max_bytes(count):
            raise CodecError(f"{len(payload)} bytes are not {count} int4 values and their scales")
        blocks = _blocks(count)
        packed = np.frombuffer(payload, np.uint8, offset=SCALE_BYTES * blocks)
        nibbles = np.empty(2 * len(packed), np.uint8)
        nibbles[::2] = packed & 15
        nibbles[1::2] = packed >> 4
        if not nibbles[:count].all() or nibbles[count:].any():
            raise CodecError("an int4 value of -8, or something behind the last value")
        integers = np.zeros(blocks * BLOCK_VALUES, np.float32)
        np.subtract(nibbles[:count], np.float32(8), out=integers[:count])
        return _restore(np.frombuffer(payload, "<u2", blocks), integers)[:count]

    def max_bytes(self, count: int) -> int:
        """See Codec. Every encoding has this size."""
        return SCALE_BYTES * _blocks(count) + (count + 1) // 2
