"""Outer optimizers against torch.optim, and the same bits whoever computes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from peer.optimizers import OuterOptimizer, learning_rate, outer_optimizer, power
from swarm.optimizer import Optimizer, Schedule

STEPS, SIZE = 50, 1000
# One step rounds a few times to half a unit of float32's last place; two orders of the same operations differ by no
# more than that in each step, and the steps add up.
ULPS_PER_STEP = 4
ULP = 2.0**-23

SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "learning_rate": 0.1},
    "sgd-1": {"optimizer": "sgd", "learning_rate": 1.0},
    "momentum": {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9},
    "nesterov": {"optimizer": "sgd", "learning_rate": 0.7, "momentum": 0.9, "nesterov": True},
    "decay": {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "clipped": {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.5, "clip_norm": 3.0},
    "adamw": {"optimizer": "adamw", "learning_rate": 0.01, "betas": (0.9, 0.95)},
    "adamw-decay": {
        "optimizer": "adamw", "learning_rate": 0.01, "betas": (0.8, 0.999), "eps": 1e-6, "weight_decay": 0.1,
    },
    "adamw-clipped": {"optimizer": "adamw", "learning_rate": 0.01, "clip_norm": 3.0, "weight_decay": 0.1},
    "linear": {
        "optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9,
        "schedule": Schedule(kind="linear", warmup_steps=10, total_steps=40, final_ratio=0.2),
    },
    "cosine": {
        "optimizer": "adamw", "learning_rate": 0.01,
        "schedule": Schedule(kind="cosine", warmup_steps=5, total_steps=60, final_ratio=0.0),
    },
}  # fmt: skip

every_setting = pytest.mark.parametrize("name", SETTINGS)


def settings_of(name: str) -> Optimizer:
    return Optimizer(**SETTINGS[name])


def gradients(size: int = SIZE, steps: int = STEPS) -> Iterator[torch.Tensor]:
    """Gradients of several magnitudes, the same at every call."""
    random = torch.Generator().manual_seed(7)
    for step in range(steps):
        yield torch.randn(size, generator=random) * 10.0 ** (step % 3 - 2)


def start(size: int = SIZE) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(3))


def square_norm(values: torch.Tensor) -> float:
    return float(values.double().square().sum())


def walk(optimizer: OuterOptimizer, size: int = SIZE, steps: int = STEPS) -> list[torch.Tensor]:
    """The parameters and slots after ``steps`` steps."""
    parameters = start(size)
    slots = {slot: torch.zeros(size) for slot in optimizer.slots}
    for step, mean in enumerate(gradients(size, steps)):
        parameters, slots = optimizer.step(parameters, slots, mean, square_norm(mean), step)
        assert tuple(slots) == optimizer.slots
    return [parameters, *slots.values()]


def torch_walk(settings: Optimizer) -> torch.Tensor:
    """The same by torch.optim, with the learning rate set by the schedule."""
    parameter = nn.Parameter(start())
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adamw":
        optimizer = torch.optim.AdamW(
            [parameter], betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay, foreach=False
        )
    else:
        optimizer = torch.optim.SGD(
            [parameter], lr=1.0, momentum=settings.momentum, weight_decay=settings.weight_decay,
            nesterov=settings.nesterov, foreach=False,
        )  # fmt: skip
    for step, mean in enumerate(gradients()):
        parameter.grad = mean
        if settings.clip_norm:
            nn.utils.clip_grad_norm_([parameter], settings.clip_norm)
        optimizer.param_groups[0]["lr"] = settings.learning_rate * settings.schedule.factor(step)
        optimizer.step()
    return parameter.detach()


@every_setting
def test_steps_equal_those_of_torch(name: str) -> None:
    settings = settings_of(name)
    ours, theirs = walk(outer_optimizer(settings))[0], torch_walk(settings)
    moved = (theirs - start()).abs().max()
    assert moved > 0.01, "it went somewhere"
    tolerance = STEPS * ULPS_PER_STEP * ULP * float(theirs.abs().max())
    assert float((ours - theirs).abs().max()) <= tolerance
    assert tolerance < 0.01 * float(moved)


@every_setting
def test_nothing_is_changed_in_place(name: str) -> None:
    optimizer = outer_optimizer(settings_of(name))
    parameters, mean = start(), next(gradients())
    slots = {slot: torch.ones(SIZE) for slot in optimizer.slots}
    before = [parameters.clone(), mean.clone(), *(slot.clone() for slot in slots.values())]
    new, new_slots = optimizer.step(parameters, slots, mean, square_norm(mean), 5)
    assert all(map(torch.equal, before, [parameters, mean, *slots.values()]))
    given = {one.untyped_storage().data_ptr() for one in (parameters, mean, *slots.values())}
    assert not given & {one.untyped_storage().data_ptr() for one in (new, *new_slots.values())}


@every_setting
def test_the_bits_do_not_depend_on_the_run_or_the_threads(name: str) -> None:
    large = 200_000  # enough for torch to share among threads
    optimizer, threads = outer_optimizer(settings_of(name)), torch.get_num_threads()
    results = []
    try:
        for count in (1, 1, 2, 4):
            torch.set_num_threads(count)
            results.append(walk(optimizer, large, steps=3))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@every_setting
def test_the_bits_do_not_depend_on_a_values_place(name: str) -> None:
    """Vector registers hold a few values at once; the rest is computed one by one."""
    optimizer = outer_optimizer(settings_of(name))
    mean = next(gradients())
    slots = {slot: start().abs() for slot in optimizer.slots}
    whole, whole_slots = optimizer.step(start(), slots, mean, 100.0, 3)
    for begin, end in ((0, 1), (1, 20), (3, 10), (SIZE - 1, SIZE)):
        here = slice(begin, end)
        cut = {slot: values[here].clone() for slot, values in slots.items()}
        part, part_slots = optimizer.step(start()[here].clone(), cut, mean[here].clone(), 100.0, 3)
        assert torch.equal(part, whole[here])
        assert all(torch.equal(part_slots[slot], whole_slots[slot][here]) for slot in slots)


@given(st.integers(-6, 6), st.floats(0.5, 20.0))
def test_clipping_bounds_the_step(exponent: int, clip_norm: float) -> None:
    mean = next(gradients()) * 10.0**exponent
    optimizer = outer_optimizer(Optimizer(optimizer="sgd", learning_rate=1.0, clip_norm=clip_norm))
    new, _ = optimizer.step(torch.zeros(SIZE), {}, mean, square_norm(mean), 0)
    norm, length = square_norm(mean) ** 0.5, square_norm(new) ** 0.5
    assert length == pytest.approx(min(norm, clip_norm), rel=1e-6)
    if norm <= clip_norm:
        assert torch.equal(new, -mean)
    assert torch.cosine_similarity(new, -mean, dim=0) == pytest.approx(1.0, abs=1e-5)


def test_clipping_goes_by_the_norm_that_was_agreed_on() -> None:
    mean = next(gradients())
    optimizer = outer_optimizer(Optimizer(optimizer="sgd", learning_rate=1.0, clip_norm=1.0))
    one, _ = optimizer.step(start(), {}, mean, 4.0, 0)
    assert torch.equal(one, start() - mean * 0.5)


def test_a_mean_of_zeros_is_no_trouble() -> None:
    for name in SETTINGS:
        optimizer = outer_optimizer(settings_of(name))
        slots = {slot: torch.zeros(SIZE) for slot in optimizer.slots}
        new, new_slots = optimizer.step(start(), slots, torch.zeros(SIZE), 0.0, 0)
        assert all(torch.isfinite(values).all() for values in (new, *new_slots.values()))


@given(st.floats(0.0, 1.0, exclude_max=True), st.integers(0, 10_000))
def test_power_is_power(base: float, exponent: int) -> None:
    # Squaring rounds once per bit of the exponent, and the rounding of a factor counts as often as it is used.
    assert power(base, exponent) == pytest.approx(base**exponent, rel=2e-16 * (exponent + 1), abs=1e-300)


def test_the_learning_rate_follows_the_schedule() -> None:
    settings = settings_of("linear")
    assert learning_rate(settings, 0) == pytest.approx(0.01)
    assert learning_rate(settings, 9) == learning_rate(settings, 10) == pytest.approx(0.1)
    assert learning_rate(settings, 25) == pytest.approx(0.06)
    assert learning_rate(settings, 40) == learning_rate(settings, 1000) == pytest.approx(0.02)
