"""The largest few of every 4096 values, in two bits each: what SparseLoCo sends, with 64 (Sarfi et al. 2025).

It leaves most of a contribution out, which must not be lost (``residual`` in the manifest). With 64 kept, a row of 4096
values takes 84 bytes. Its indices cost 8 bits each by Elias-Fano coding: the lower 6 bits of each, and the upper ones
in unary, 128 bits in all, so that the size is fixed. Its values are signs, and which of two magnitudes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from peer.rounds.codec.interface import Codec, CodecError
from peer.rounds.codec.scales import SCALE_BYTES, read_scales, round_scales, write_scales

ROW_VALUES = 4096
Bytes = NDArray[np.uint8]


def _pack(bits: NDArray[np.uint8]) -> Bytes:
    """uint8 [rows, bytes] of single bits [rows, bits], the first the lowest."""
    return np.packbits(bits, axis=1, bitorder="little")


def _unpack(packed: Bytes, bits: int) -> NDArray[np.uint8]:
    """The inverse of ``_pack``. Raises CodecError unless what is left of the last byte is zero."""
    unpacked = np.unpackbits(packed, axis=1, bitorder="little")
    if unpacked[:, bits:].any():
        raise CodecError("something behind the last bit of a row")
    return unpacked[:, :bits]


def _two_magnitudes(magnitudes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two scales for each row, and which magnitudes take the larger, so that the squared error is the least.

    magnitudes: float32 [rows, k]. Returns float32 [rows, 2], the larger first, and bool [rows, k]. The best two
    groups are a split of the sorted magnitudes; of all splits, the one with the largest sum of (sum**2 / count).
    """
    k = magnitudes.shape[1]
    ordered, order = magnitudes.sort(dim=1, descending=True)
    sums = ordered.double().cumsum(dim=1)  # 64 times the largest float32 is no float32
    counts = torch.arange(1, k + 1, dtype=torch.float64)
    rest, left = sums[:, -1:] - sums, (k - counts).clamp_(min=1)
    split = (sums.square() / counts + rest.square() / left).argmax(dim=1, keepdim=True)
    scales = torch.cat([(sums / counts).gather(1, split), (rest / left).gather(1, split)], dim=1).clamp_(min=0)
    larger = torch.zeros(magnitudes.shape, dtype=torch.bool).scatter_(1, order, torch.arange(k) <= split)
    return round_scales(scales), larger


class SparseCodec:
    """Top 64 of 4096, or another share that is a power of 2; two bits for each.

    Of a row with these values kept, the decoded ones are the nearest that two magnitudes allow, but for the rounding
    of the two (2**-8 of each, or 2**-127). What is not kept decodes to 0.

    low_bits: one value in 2**low_bits is kept, of a shorter last row rounded up. The bytes do not tell. for_mean: where
    the mean has another density: of n contributions it has up to n times as many values.
    """

    name = "sparse"

    def __init__(self, low_bits: int = 6, for_mean: Codec | None = None):
        # k indices below k * 2**low_bits have k upper parts, and 2 k bits hold them in unary
        self._low_bits = low_bits
        self._for_mean = for_mean

    @property
    def for_mean(self) -> Codec:
        """See Codec."""
        return self._for_mean or self

    def encode(self, values: torch.Tensor) -> bytes:
        """See Codec."""
        whole = len(values) // ROW_VALUES * ROW_VALUES
        payload = b""
        if whole:
            payload += self._encode_rows(values[:whole].view(-1, ROW_VALUES)).tobytes()
        if whole < len(values):
            payload += self._encode_rows(values[whole:].view(1, -1)).tobytes()
        return payload

    def decode(self, payload: bytes, count: int) -> torch.Tensor:
        """See Codec."""
        if len(payload) != self.max_bytes(count):
            raise CodecError(f"{len(payload)} bytes are not {count} sparse values")
        rows, rest = divmod(count, ROW_VALUES)
        received = np.frombuffer(payload, np.uint8)
        edge = rows * self._row_bytes(ROW_VALUES)
        decoded = [np.empty(0, np.float32)]
        if rows:
            decoded.append(self._decode_rows(received[:edge].reshape(rows, -1), ROW_VALUES).reshape(-1))
        if rest:
            decoded.append(self._decode_rows(received[edge:].reshape(1, -1), rest).reshape(-1))
        return torch.from_numpy(np.concatenate(decoded))

    def max_bytes(self, count: int) -> int:
        """See Codec. Every encoding has this size."""
        rows, rest = divmod(count, ROW_VALUES)
        return rows * self._row_bytes(ROW_VALUES) + (self._row_bytes(rest) if rest else 0)

    def _kept(self, values: int) -> int:
        """How many of a row of ``values`` are kept."""
        return -(-values >> self._low_bits)

    def _sections(self, k: int) -> list[int]:
        """Bytes of a row: two scales, the upper parts of the indices, the lower parts, the values."""
        return [2 * SCALE_BYTES, -(-2 * k // 8), -(-self._low_bits * k // 8), -(-2 * k // 8)]

    def _row_bytes(self, values: int) -> int:
        return sum(self._sections(self._kept(values)))

    def _encode_rows(self, rows: torch.Tensor) -> Bytes:
        """uint8 [rows, bytes of a row] of float32 [rows, values]."""
        k = self._kept(rows.shape[1])
        indices = rows.abs().topk(k, dim=1, sorted=False).indices.sort(dim=1).values
        values = rows.gather(1, indices)
        scales, larger = _two_magnitudes(values.abs())
        sized = torch.where(larger, scales[:, :1], scales[:, 1:])
        negative = (values < 0) & (sized > 0)
        codes = torch.stack([negative, larger], dim=2).flatten(1).to(torch.uint8).numpy()

        at = indices.numpy()
        upper = np.zeros((len(at), 2 * k), np.uint8)
        np.put_along_axis(upper, (at >> self._low_bits) + np.arange(k), 1, axis=1)
        lower = (at[:, :, None] >> np.arange(self._low_bits) & 1).astype(np.uint8).reshape(len(at), -1)
        return np.concatenate([write_scales(scales).view(np.uint8), _pack(upper), _pack(lower), _pack(codes)], axis=1)

    def _decode_rows(self, packed: Bytes, values: int) -> NDArray[np.float32]:
        """float32 [rows, values] of uint8 [rows, bytes of a row]. Raises CodecError."""
        k, rows, low_bits = self._kept(values), len(packed), self._low_bits
        written, upper, lower, codes = np.split(packed, np.cumsum(self._sections(k))[:-1], axis=1)
        scales = read_scales(np.ascontiguousarray(written).view("<u2"))

        ones = _unpack(upper, 2 * k)
        if (ones.sum(axis=1, dtype=np.int64) != k).any():
            raise CodecError(f"a row with other than {k} indices")
        high = np.nonzero(ones)[1].reshape(rows, k) - np.arange(k)
        low = _unpack(lower, low_bits * k).reshape(rows, k, low_bits) @ (1 << np.arange(low_bits))
        indices = (high << low_bits) + low
        if (indices >= values).any() or (np.diff(indices, axis=1) <= 0).any():
            raise CodecError("indices that do not increase, or beyond the row")

        negative, larger = np.moveaxis(_unpack(codes, 2 * k).reshape(rows, k, 2), 2, 0)
        sized = np.where(larger, scales[:, :1], scales[:, 1:])
        decoded = np.zeros((rows, values), np.float32)
        np.put_along_axis(decoded, indices, np.where(negative, -sized, sized), axis=1)
        return decoded
