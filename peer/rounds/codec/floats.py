"""Dense codecs that keep floating point: all of it, or half."""

from __future__ import annotations

import math
import struct

import numpy as np
import torch

from peer.rounds.codec.interface import Codec, CodecError


class Float32Codec:
    """The values themselves, little-endian."""

    name = "fp32"

    @property
    def for_mean(self) -> Codec:
        """See Codec."""
        return self

    def encode(self, values: torch.Tensor) -> bytes:
        """See Codec."""
        return values.numpy().astype("<f4", copy=False).tobytes()

    def decode(self, payload: bytes, count: int) -> torch.Tensor:
        """See Codec."""
        if len(payload) != 4 * count:
            raise CodecError(f"{len(payload)} bytes are not {count} float32 values")
        return torch.from_numpy(np.frombuffer(payload, dtype="<f4").astype(np.float32))

    def max_bytes(self, count: int) -> int:
        """See Codec."""
        return 4 * count


class Float16Codec:
    """Half precision with one power-of-two scale per chunk.

    The scale brings the largest magnitude into [2**14, 2**15), so nothing overflows; a power of two makes scaling
    itself exact. Error: at most 2**-11 of a value, or 2**-39 of the chunk's largest for values so small that they
    become subnormal.
    """

    name = "fp16"
    _SCALE = struct.Struct("<f")
    _MOST = 2.0**15 - 2.0**4  # the largest float16 below 2**15

    @property
    def for_mean(self) -> Codec:
        """See Codec."""
        return self

    def encode(self, values: torch.Tensor) -> bytes:
        """See Codec."""
        largest = float(values.abs().max()) if len(values) else 0.0
        _, exponent = math.frexp(largest)  # largest = m * 2**exponent with m in [0.5, 1)
        power = min(max(exponent - 15, -126), 126) if largest else 0
        scaled = values * 2.0**-power  # what becomes a subnormal float32 here is 0 as a float16
        if exponent == 128:  # rounded up to 2**15, the largest float32 values would decode as infinity
            scaled.clamp_(-self._MOST, self._MOST)
        halves = scaled.half().numpy()  # torch converts many times faster than numpy
        return b"".join((self._SCALE.pack(2.0**power), halves.astype("<f2", copy=False).tobytes()))

    def decode(self, payload: bytes, count: int) -> torch.Tensor:
        """See Codec."""
        if len(payload) != self._SCALE.size + 2 * count:
            raise CodecError(f"{len(payload)} bytes are not {count} scaled float16 values")
        (scale,) = self._SCALE.unpack_from(payload)
        if not (math.isfinite(scale) and scale > 0 and math.frexp(scale)[0] == 0.5):
            raise CodecError(f"a scale of {scale}")
        bits = np.frombuffer(payload, dtype="<i2", offset=self._SCALE.size).astype(np.int16)
        return torch.from_numpy(bits).view(torch.float16).float().mul_(scale)

    def max_bytes(self, count: int) -> int:
        """See Codec."""
        return self._SCALE.size + 2 * count
