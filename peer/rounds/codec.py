"""How values travel: encode float32, decode the same float32 everywhere.

A codec encodes one chunk on its own. Decoding is a pure function of the bytes and uses operations that IEEE 754
rounds exactly, one at a time, so that every peer decodes the same bits. The interface takes block scales, low-bit
values and sparse indices as well: the encoded size is bounded, not fixed.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch


class CodecError(ValueError):
    """The bytes are not an encoding of that many values."""


class Codec(Protocol):
    """Encodes chunks of a flat vector."""

    name: str

    @property
    def for_mean(self) -> Codec:
        """What a reducer encodes the mean with."""
        ...

    def encode(self, values: torch.Tensor) -> bytes:
        """``values``: float32 [n], finite, on the CPU."""
        ...

    def decode(self, payload: bytes, count: int) -> torch.Tensor:
        """float32 [count]. Raises CodecError when ``payload`` cannot be that."""
        ...

    def max_bytes(self, count: int) -> int:
        """The largest encoding of ``count`` values, in bytes."""
        ...


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

    @property
    def for_mean(self) -> Codec:
        """See Codec."""
        return self

    _SCALE = struct.Struct("<f")
    _MOST = 2.0**15 - 2.0**4  # the largest float16 below 2**15

    def encode(self, values: torch.Tensor) -> bytes:
        """See Codec."""
        array = values.numpy()
        largest = float(np.abs(array).max(initial=0.0))
        _, exponent = math.frexp(largest)  # largest = m * 2**exponent with m in [0.5, 1)
        power = min(max(exponent - 15, -126), 126) if largest else 0
        scaled = np.ldexp(array.astype(np.float64), -power)
        if exponent == 128:  # rounded up to 2**15, the largest float32 values would decode as infinity
            scaled = np.clip(scaled, -self._MOST, self._MOST)
        return self._SCALE.pack(2.0**power) + scaled.astype("<f2").tobytes()

    def decode(self, payload: bytes, count: int) -> torch.Tensor:
        """See Codec."""
        if len(payload) != self._SCALE.size + 2 * count:
            raise CodecError(f"{len(payload)} bytes are not {count} scaled float16 values")
        (scale,) = self._SCALE.unpack_from(payload)
        if not (math.isfinite(scale) and scale > 0 and math.frexp(scale)[0] == 0.5):
            raise CodecError(f"a scale of {scale}")
        halves = np.frombuffer(payload, dtype="<f2", offset=self._SCALE.size).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # what a stranger sent: the gates see the infinity or nan
            return torch.from_numpy(halves * np.float32(scale))

    def max_bytes(self, count: int) -> int:
        """See Codec."""
        return self._SCALE.size + 2 * count


CODECS: dict[str, Callable[[], Codec]] = {"fp32": Float32Codec, "fp16": Float16Codec}
"""The codecs a manifest may name."""
