"""Codecs: exact where they say so, within the stated error where not, and safe against any bytes."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from peer.rounds.codec import CODECS, Codec, CodecError, Float16Codec, Float32Codec

LARGEST = float(np.finfo(np.float32).max)
SMALLEST = 2.0**-149  # the least float32 above zero

codecs = pytest.mark.parametrize("codec", [make() for make in CODECS.values()], ids=list(CODECS))
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
# Single values, a whole range of magnitudes in one vector, and the edges.
edges = st.sampled_from(
    [0.0, -0.0, SMALLEST, -SMALLEST, 2.0**-126, 1e-38, 1e38, -1e38, LARGEST, -LARGEST, 1.0, 65504.0]
)
vectors = hnp.arrays(np.float32, st.integers(0, 40), elements=finite | edges)


def bits(values: torch.Tensor) -> list[int]:
    return values.view(torch.int32).tolist()


@given(hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32)))
@example(np.array([SMALLEST, -SMALLEST, 1e-45, 1e-40, -0.0, 0.0, LARGEST, np.inf, np.nan], np.float32))
def test_fp32_returns_the_same_bits(array: np.ndarray) -> None:
    values, codec = torch.from_numpy(array), Float32Codec()
    assert bits(codec.decode(codec.encode(values), len(values))) == bits(values)


def test_fp32_is_little_endian() -> None:
    assert Float32Codec().encode(torch.tensor([1.0, -2.0])) == struct.pack("<ff", 1.0, -2.0)


@given(vectors)
@example(np.array([1e38, 1e-45, 0.0, -1e38], np.float32))
@example(np.array([LARGEST, -LARGEST, 3.4e38, 1.0], np.float32))  # rounded up, they would be infinite
@example(np.array([1e-45], np.float32))
@example(np.array([1e-45, -3e-45, 1e-42], np.float32))
@example(np.array([2.0**15 - 2.0**-9, 2.0**-25 * 1.5], np.float32))
@example(np.zeros(5, np.float32))
def test_fp16_errs_by_no_more_than_it_says(array: np.ndarray) -> None:
    values, codec = torch.from_numpy(array), Float16Codec()
    decoded = codec.decode(codec.encode(values), len(values))
    assert decoded.dtype == torch.float32
    assert torch.isfinite(decoded).all()
    exact, got = values.double(), decoded.double()
    largest = exact.abs().max() if len(exact) else 0.0
    bound = torch.maximum(exact.abs() * 2.0**-11, torch.full_like(exact, 2.0**-39 * float(largest)))
    assert bool(((got - exact).abs() <= bound).all())
    assert bool(((got == 0) | (got.sign() == exact.sign())).all())


@given(st.integers(-149, 127), st.lists(st.integers(-2047, 2047), min_size=1, max_size=20))
def test_fp16_is_exact_for_eleven_bits_at_any_scale(power: int, integers: list[int]) -> None:
    exact = np.array([math.ldexp(integer / 2048, power) for integer in integers])
    values = torch.from_numpy(exact.astype(np.float32))
    if not np.array_equal(values.double().numpy(), exact):  # below what float32 itself can say
        return
    decoded = Float16Codec().decode(Float16Codec().encode(values), len(values))
    assert torch.equal(decoded, values)


@codecs
@given(array=vectors)
def test_encoding_is_deterministic_bounded_and_settled_after_one_round(codec: Codec, array: np.ndarray) -> None:
    values = torch.from_numpy(array)
    before = values.clone()
    payload = codec.encode(values)
    assert payload == codec.encode(values.clone())
    assert torch.equal(values, before), "the values were changed"
    assert len(payload) <= codec.max_bytes(len(values))
    decoded = codec.decode(payload, len(values))
    assert bits(decoded) == bits(codec.decode(bytes(payload), len(values)))
    assert bits(codec.decode(codec.encode(decoded), len(values))) == bits(decoded)


@codecs
@given(array=vectors)
def test_a_view_is_encoded_like_its_copy(codec: Codec, array: np.ndarray) -> None:
    values = torch.from_numpy(array)
    surrounded = torch.cat([torch.ones(3), values, torch.ones(2)])[3 : 3 + len(values)]
    assert codec.encode(surrounded) == codec.encode(values)


@codecs
@given(payload=st.binary(max_size=100), count=st.integers(0, 50))
def test_any_bytes_decode_or_are_refused(codec: Codec, payload: bytes, count: int) -> None:
    try:
        decoded = codec.decode(payload, count)
    except CodecError:
        return
    assert decoded.shape == (count,)
    assert decoded.dtype == torch.float32
    assert decoded.is_contiguous()


@given(st.integers(-149, 127), st.lists(st.integers(0, 65535), max_size=10))
@example(127, [0x7BFF, 0xFBFF])  # the largest half, times a scale that no encoder chooses
@example(1, [0x7C01, 0x7E00, 0x7C00])  # a signalling nan, a quiet one, infinity
@example(-149, [0x0001])
def test_any_halves_at_any_scale_decode(power: int, halves: list[int]) -> None:
    payload = struct.pack(f"<f{len(halves)}H", 2.0**power, *halves)
    decoded = Float16Codec().decode(payload, len(halves))
    exact = np.array(halves, np.uint16).view(np.float16)
    expected = [value * 2.0**power if math.isfinite(value) else value for value in exact.tolist()]
    for got, want in zip(decoded.tolist(), expected, strict=True):
        if math.isnan(want):
            assert math.isnan(got)
        elif abs(want) > LARGEST:
            assert got == math.copysign(math.inf, want), "left for the gate to refuse"
        else:
            assert abs(got - want) <= SMALLEST / 2


@codecs
@pytest.mark.parametrize("change", [-1, 1, 2, 4])
def test_a_payload_of_another_length_is_refused(codec: Codec, change: int) -> None:
    payload = codec.encode(torch.ones(5))
    other = payload[:change] if change < 0 else payload + bytes(change)
    with pytest.raises(CodecError, match="bytes are not 5"):
        codec.decode(other, 5)


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, 0.0, -0.0, -1.0, 3.0, 1.5, 1.0 + 2.0**-23, 4.2e-45])
def test_a_scale_that_no_encoder_makes_is_refused(scale: float) -> None:
    payload = struct.pack("<f", scale) + Float16Codec().encode(torch.ones(4))[4:]
    with pytest.raises(CodecError, match="a scale of"):
        Float16Codec().decode(payload, 4)
