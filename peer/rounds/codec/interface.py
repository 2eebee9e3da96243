"""What a codec is to a round."""

from __future__ import annotations

from typing import Protocol

import torch


class CodecError(ValueError):
    """The bytes are not an encoding of that many values."""


class Codec(Protocol):
    """Encodes chunks of a flat vector."""

    name: str

    @property
    def for_mean(self) -> Codec:
        """The codec by which a reducer encodes the mean of what was encoded by this one."""
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
