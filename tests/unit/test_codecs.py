"""Codecs: exact where they say so, within the stated error where not, and safe against any bytes."""

from __future__ import annotations

import hashlib
import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from peer.needs import value_bytes, wire_bytes
from peer.rounds.codec import (
    CODECS,
    Codec,
    CodecError,
    Float16Codec,
    Float32Codec,
    Int4Codec,
    Int8Codec,
    SparseCodec,
    codec_of,
)
from peer.rounds.partition import CHUNK_VALUES
from swarm.manifest import Round

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


# -- all of them -------------------------------------------------------------------------------------------------


def mixed(count: int) -> torch.Tensor:
    """float32 [count] of a fixed sequence: signs and magnitudes over 12 powers of two, the same everywhere."""
    state, made = 1, []
    for _ in range(count):
        state = state * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
        made.append(math.ldexp((state >> 40) - (1 << 23), -23 - (state >> 33) % 12))
    return torch.tensor(made, dtype=torch.float64).float()


GOLDEN = {
    "fp32": "b0a20c7e6da54c46",
    "fp16": "1c2058297e9bc3e9",
    "int8": "844f7a98c143b520",
    "int4": "418485b680d1c0e6",
    "sparse": "8ba1a50fb008cd27",
}


@codecs
def test_bytes_and_what_they_decode_to_never_change(codec: Codec) -> None:
    values = mixed(2 * 4096 + 777)
    payload = codec.encode(values)
    decoded = codec.decode(payload, len(values)).numpy().astype("<f4").tobytes()
    assert hashlib.sha256(payload + decoded).hexdigest()[:16] == GOLDEN[codec.name]


@codecs
def test_the_bytes_on_the_wire_are_those_that_a_run_is_told_to_cost(codec: Codec) -> None:
    payload = codec.encode(mixed(CHUNK_VALUES))
    assert len(payload) / CHUNK_VALUES == pytest.approx(value_bytes(codec.name), rel=1e-4)


def sparse(**densities: int) -> Codec:
    """The codec of a manifest with these."""
    return codec_of(Round.model_validate({"average": "updates", "inner_steps": 1, "codec": "sparse", **densities}))


@pytest.mark.parametrize("keep_one_in", [4, 8, 16, 32, 64, 128, 256])
def test_a_sparse_codec_keeps_one_in_so_many(keep_one_in: int) -> None:
    codec, values = sparse(keep_one_in=keep_one_in), mixed(CHUNK_VALUES)
    payload = codec.encode(values)
    assert len(payload) / CHUNK_VALUES == pytest.approx(value_bytes("sparse", keep_one_in), rel=1e-9)
    assert codec.decode(payload, CHUNK_VALUES).count_nonzero() <= CHUNK_VALUES // keep_one_in


def test_a_mean_may_be_denser_than_what_it_is_the_mean_of() -> None:
    codec, values = sparse(keep_one_in=64, mean_keep_one_in=16), mixed(CHUNK_VALUES)
    assert codec.encode(values) == sparse(keep_one_in=64).encode(values)
    assert codec.for_mean.encode(values) == sparse(keep_one_in=16).encode(values)
    assert sparse(keep_one_in=64).for_mean.encode(values) == codec.encode(values)
    each = [len(one.encode(values)) / CHUNK_VALUES for one in (codec, codec.for_mean)]
    assert each == pytest.approx(wire_bytes("sparse", 64, 16), rel=1e-9)


@codecs
@given(data=st.data(), count=st.integers(1, 300))
def test_random_bytes_of_the_right_length_decode_or_are_refused(codec: Codec, data: st.DataObject, count: int) -> None:
    size = codec.max_bytes(count)
    try:
        decoded = codec.decode(data.draw(st.binary(min_size=size, max_size=size)), count)
    except CodecError:
        return
    assert decoded.shape == (count,)


@codecs
@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 255, 256, 257, 4095, 4096, 4097, 8192])
def test_every_length_is_taken_and_its_neighbours_refused(codec: Codec, count: int) -> None:
    values = mixed(count)
    payload = codec.encode(values)
    assert len(payload) == codec.max_bytes(count)
    assert codec.decode(payload, count).shape == (count,)
    for other in (payload[:-1], payload + b"\0", payload + payload[:1]):
        if len(other) != len(payload):
            with pytest.raises(CodecError):
                codec.decode(other, count)


@codecs
def test_values_near_the_largest_stay_finite(codec: Codec) -> None:
    for values in (torch.full((5000,), LARGEST), -LARGEST * torch.rand(5000, generator=torch.manual_seed(0))):
        decoded = codec.decode(codec.encode(values), 5000)
        assert torch.isfinite(decoded).all()


# -- blocks of integers ------------------------------------------------------------------------------------------


blockwise = pytest.mark.parametrize(
    ("codec", "largest"), [(Int8Codec(), 127), (Int4Codec(), 7)], ids=["int8", "int4"]
)  # fmt: skip
# A few values, each repeated or not, over several blocks: hypothesis is slow on long arrays.
long_vectors = st.builds(
    lambda values, count, seed: np.random.default_rng(seed).choice(np.append(values, np.float32(0)), count),
    vectors,
    st.integers(0, 700),
    st.integers(0, 99),
)


@blockwise
@given(array=long_vectors | vectors)
@example(np.full(300, LARGEST, np.float32))
@example(np.array([SMALLEST, 2.0**-126, 127 * 2.0**-126], np.float32))
def test_integers_err_by_half_a_step(codec: Codec, largest: int, array: np.ndarray) -> None:
    values = torch.from_numpy(array)
    decoded = codec.decode(codec.encode(values), len(values))
    assert torch.isfinite(decoded).all()
    for exact, got in zip(values.double().split(256), decoded.double().split(256), strict=True):
        if not len(exact):
            continue
        bound = max(float(exact.abs().max()) / {127: 253, 7: 13.9}[largest], 2.0**-127)
        assert float((got - exact).abs().max()) <= bound
        assert bool(((got == 0) | (got.sign() == exact.sign())).all())
        assert got[exact == 0].count_nonzero() == 0


@blockwise
@given(data=st.data(), power=st.integers(-126, 110))
def test_integers_times_a_scale_are_exact(codec: Codec, largest: int, data: st.DataObject, power: int) -> None:
    integers = data.draw(st.lists(st.integers(-largest, largest), min_size=1, max_size=300))
    scale = data.draw(st.integers(128, 255)) / 128
    values = torch.tensor([*integers[:255], largest], dtype=torch.float64) * scale * 2.0**power
    assert torch.equal(codec.decode(codec.encode(values.float()), len(values)).double(), values)


@pytest.mark.parametrize(
    "codec", [Int8Codec(), Int4Codec(), SparseCodec()], ids=["int8", "int4", "sparse"]
)  # fmt: skip
@pytest.mark.parametrize("scale", [0x7F80, 0x7FC0, 0x7FFF, 0xFF80, 0x8000, 0xBF80, 0x0001, 0x007F])
def test_a_short_scale_that_no_encoder_makes_is_refused(codec: Codec, scale: int) -> None:
    payload = codec.encode(torch.ones(70))
    with pytest.raises(CodecError, match="a scale of"):
        codec.decode(struct.pack("<H", scale) + payload[2:], 70)


def test_integers_that_no_encoder_makes_are_refused() -> None:
    int8, int4 = Int8Codec().encode(torch.ones(3)), Int4Codec().encode(torch.ones(3))
    assert (int8, int4) == (bytes.fromhex("013c7f7f7f"), bytes.fromhex("123eff0f"))
    for codec, payload in ((Int8Codec(), "013c7f7f80"), (Int4Codec(), "123ef00f"), (Int4Codec(), "123eff1f")):
        with pytest.raises(CodecError):
            codec.decode(bytes.fromhex(payload), 3)


# -- the largest of each row -------------------------------------------------------------------------------------


@given(array=long_vectors | vectors, count=st.sampled_from([1, 64, 65, 4096, 5000]), seed=st.integers(0, 99))
def test_sparse_keeps_the_largest_in_two_bits(array: np.ndarray, count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = torch.from_numpy(generator.choice(np.append(array, np.float32(1)), count))
    codec = SparseCodec()
    decoded = codec.decode(codec.encode(values), count)
    for exact, got in zip(values.double().split(4096), decoded.double().split(4096), strict=True):
        k = -(-len(exact) // 64)
        kept = got != 0
        assert int(kept.sum()) <= k
        assert len(got[kept].abs().unique()) <= 2
        assert bool((got[kept].sign() == exact[kept].sign()).all())
        largest = exact.abs().sort(descending=True).values
        if k < len(exact):  # ties may fall either way
            assert bool((exact.abs()[kept] >= largest[k - 1]).all())
        left = (exact.abs() - got.abs()).square().sum() - largest[k:].square().sum()
        assert float(left) <= best_of_two(largest[:k]) * 1.001 + float(largest[:k].square().sum()) * 2.0**-16 + 1e-74


def best_of_two(descending: torch.Tensor) -> float:
    """The least squared error of two magnitudes for these."""
    splits = [(descending[:at], descending[at:]) for at in range(1, len(descending) + 1)]
    return min(
        sum(float((group - group.mean()).square().sum()) for group in split if len(group)) for split in splits
    )  # fmt: skip


def one_row() -> tuple[torch.Tensor, bytes]:
    """130 values, of which 3 are kept: at 0, 64 and 129."""
    values = torch.zeros(130)
    values[[0, 64, 129]] = torch.tensor([4.0, -1.0, 1.0])
    return values, SparseCodec().encode(values)


def test_the_bytes_of_a_sparse_row() -> None:
    values, payload = one_row()
    #       4.0 1.0 | ones at 0, 2, 4 | 0, 0, 1 in 6 bits | larger, negative, neither
    assert payload.hex(" ") == "80 40 80 3f 15 00 10 00 06"
    assert torch.equal(SparseCodec().decode(payload, 130), values)


@pytest.mark.parametrize(
    ("at", "byte", "reason"),
    [
        (4, 0x14, "indices"),  # two
        (4, 0x1D, "indices"),  # four
        (4, 0x55, "behind"),  # a bit too many
        (4, 0x13, "increase"),  # 0, 0, 129
        (4, 0x25, "beyond"),  # the last at 193
        (6, 0x20, "beyond"),  # 130
        (7, 0x04, "behind"),
        (8, 0x46, "behind"),
    ],
)
def test_a_malformed_sparse_row_is_refused(at: int, byte: int, reason: str) -> None:
    payload = bytearray(one_row()[1])
    payload[at] = byte
    with pytest.raises(CodecError, match=reason):
        SparseCodec().decode(bytes(payload), 130)
