"""The gates: what a contribution must be before it counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from peer.rounds.gates import check_norms, check_shape, check_values, check_weight, square_norm

LARGEST = float(np.finfo(np.float32).max)
BAD = [math.nan, math.inf, -math.inf]

# -- values --------------------------------------------------------------------------------------------------------


@given(hnp.arrays(np.float32, st.integers(0, 60), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_finite_values_pass(array: np.ndarray) -> None:
    assert check_values(torch.from_numpy(array)) == ""


@pytest.mark.parametrize("size", [1, 7, 1000, 200_000])
@pytest.mark.parametrize("value", [LARGEST, -LARGEST])
def test_the_largest_values_pass_though_their_float32_sum_would_not(size: int, value: float) -> None:
    assert check_values(torch.full((size,), value)) == ""


@given(
    st.sampled_from([1, 3, 64, 1000, 50_000]),
    st.lists(st.tuples(st.integers(0, 49_999), st.sampled_from(BAD)), min_size=1, max_size=4),
    st.sampled_from([0.0, 1.0, LARGEST, -LARGEST]),
)
def test_one_bad_value_anywhere_is_found(size: int, bad: list[tuple[int, float]], rest: float) -> None:
    values = torch.full((size,), rest)
    for index, value in bad:
        values[index % size] = value
    assert check_values(values) == "non-finite"


def test_infinities_of_both_signs_do_not_cancel() -> None:
    assert check_values(torch.tensor([math.inf, 1.0, -math.inf])) == "non-finite"


def test_a_contribution_is_flat_float32_of_the_parameters() -> None:
    assert check_shape(torch.zeros(5), 5) == ""
    for other in (torch.zeros(4), torch.zeros(6), torch.zeros(5, 1), torch.zeros(1, 5), torch.tensor(5.0)):
        assert check_shape(other, 5) == "shape"
    for kind in (torch.float64, torch.float16, torch.int32):
        assert check_shape(torch.zeros(5, dtype=kind), 5) == "shape"
    assert check_shape(torch.zeros(5, device="meta"), 5) == "shape"


# -- weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "examples, reason", [(0, ""), (1, ""), (80, ""), (81, "weight"), (-1, "weight"), (10**9, "weight")]
)
def test_a_weight_is_at_most_what_the_manifest_allows(examples: int, reason: str) -> None:
    assert check_weight(examples, 80) == reason


# -- norms ---------------------------------------------------------------------------------------------------------


@given(hnp.arrays(np.float32, st.integers(0, 50), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_the_norm_is_computed_in_float64(array: np.ndarray) -> None:
    expected = math.fsum(float(value) ** 2 for value in array)
    assert square_norm(torch.from_numpy(array)) == pytest.approx(expected, rel=1e-13, abs=1e-300)


def test_norms_within_the_ratio_pass_up_to_the_bound() -> None:
    norms = {"a": 1.0, "b": 4.0, "c": 9.0}
    assert check_norms(norms, 2.0) == {}  # the median is 4 (a norm of 2), the longest 3
    assert check_norms({**norms, "c": 16.0}, 2.0) == {}
    assert check_norms({**norms, "c": 16.1}, 2.0) == {"c": "norm"}


@given(st.floats(1e-30, 1e30), st.floats(2.0, 100.0), st.floats(1.01, 1e6))
def test_one_of_two_cannot_make_itself_the_measure(honest: float, ratio: float, excess: float) -> None:
    assert check_norms({"honest": honest, "long": honest * ratio**2 * excess}, ratio) == {"long": "norm"}


norm_tables = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0.0, 1e60), max_size=8)


@given(norm_tables, st.floats(1.01, 100.0))
def test_most_contributions_always_pass(norms: dict[str, float], ratio: float) -> None:
    refused = check_norms(norms, ratio)
    assert 2 * len(refused) <= len(norms)
    assert set(refused.values()) <= {"norm"}
    passed = [norm for peer, norm in norms.items() if peer not in refused]
    assert all(norms[peer] > max(passed) for peer in refused)


@given(norm_tables, st.floats(1.01, 100.0), st.integers(-60, 60))
def test_a_common_scale_changes_nothing(norms: dict[str, float], ratio: float, power: int) -> None:
    norms = {peer: norm for peer, norm in norms.items() if norm == 0.0 or norm > 1e-60}
    scaled = {peer: math.ldexp(norm, power) for peer, norm in norms.items()}
    assert check_norms(scaled, ratio) == check_norms(norms, ratio)


@given(st.floats(0.0, 1e60))
def test_a_contribution_alone_has_nothing_to_be_compared_with(norm: float) -> None:
    assert check_norms({"a": norm}, 2.0) == {}
    assert check_norms({}, 2.0) == {}


def test_where_most_contribute_nothing_there_is_no_measure() -> None:
    assert check_norms({"a": 0.0, "b": 0.0, "c": 5.0}, 2.0) == {}
