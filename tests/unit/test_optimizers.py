"""Our outer optimizers do what torch.optim does, with the same bits whatever the machine does beside."""

from __future__ import annotations

import math

import pytest
import torch

from peer.optimizers import outer_optimizer, power
from swarm.optimizer import Optimizer, Schedule

SIZE, STEPS = 10_000, 50

CASES = [
    pytest.param(Optimizer(optimizer="sgd", learning_rate=0.1), id="sgd"),
    pytest.param(Optimizer(optimizer="sgd", learning_rate=0.1, momentum=0.9), id="momentum"),
    pytest.param(Optimizer(optimizer="sgd", learning_rate=0.1, momentum=0.9, nesterov=True), id="nesterov"),
    pytest.param(Optimizer(optimizer="sgd", learning_rate=0.1, momentum=0.5, weight_decay=0.01), id="decay"),
    pytest.param(Optimizer(optimizer="adamw", learning_rate=0.003), id="adamw"),
    pytest.param(Optimizer(optimizer="adamw", learning_rate=0.003, weight_decay=0.1), id="adamw-decay"),
    pytest.param(
        Optimizer(
            optimizer="adamw", learning_rate=0.003, schedule=Schedule(kind="cosine", warmup_steps=5, total_steps=40)
        ),
        id="adamw-cosine",
    ),
]


def _start() -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(0))


def _means() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(SIZE, generator=generator) for _ in range(STEPS)]


def _ours(settings: Optimizer) -> torch.Tensor:
    optimizer = outer_optimizer(settings)
    parameters = _start()
    slots = {name: torch.zeros(SIZE) for name in optimizer.slots}
    for step, mean in enumerate(_means()):
        norm = float(mean.double().square().sum())
        parameters, slots = optimizer.step(parameters, slots, mean, norm, step)
    assert set(slots) == set(optimizer.slots)
    return parameters


def _torchs(settings: Optimizer) -> torch.Tensor:
    parameter = torch.nn.Parameter(_start())
    reference: torch.optim.Optimizer
    if settings.optimizer == "adamw":
        reference = torch.optim.AdamW(
            [parameter], settings.learning_rate, settings.betas, settings.eps, settings.weight_decay
        )
    else:
        reference = torch.optim.SGD(
            [parameter], settings.learning_rate, settings.momentum, 0.0, settings.weight_decay, settings.nesterov
        )
    for step, mean in enumerate(_means()):
        reference.param_groups[0]["lr"] = settings.learning_rate * settings.schedule.factor(step)
        parameter.grad = mean.clone()
        reference.step()
    return parameter.detach()


@pytest.mark.parametrize("settings", CASES)
def test_it_does_what_torch_does(settings: Optimizer) -> None:
    # 50 steps of a few roundings of 2**-24 each, relative to values of order one
    torch.testing.assert_close(_ours(settings), _torchs(settings), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("settings", CASES)
def test_the_bits_do_not_depend_on_threads(settings: Optimizer) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = _ours(settings)
        torch.set_num_threads(2)
        assert torch.equal(one, _ours(settings))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("settings", CASES)
def test_nothing_is_changed_in_place(settings: Optimizer) -> None:
    optimizer = outer_optimizer(settings)
    parameters, mean = _start(), _means()[0]
    slots = {name: torch.ones(SIZE) for name in optimizer.slots}
    optimizer.step(parameters, slots, mean, 1.0, 0)
    assert torch.equal(parameters, _start())
    assert torch.equal(mean, _means()[0])
    assert all(torch.equal(slot, torch.ones(SIZE)) for slot in slots.values())


def test_a_long_mean_is_clipped_by_the_norm_it_came_with() -> None:
    settings = Optimizer(optimizer="sgd", learning_rate=1.0, clip_norm=0.5)
    mean = torch.tensor([3.0, 4.0])
    parameters, _ = outer_optimizer(settings).step(torch.zeros(2), {}, mean, 25.0, 0)
    torch.testing.assert_close(parameters, torch.tensor([-0.3, -0.4]))
    short, _ = outer_optimizer(settings).step(torch.zeros(2), {}, mean / 100, 0.0025, 0)
    assert torch.equal(short, -(mean / 100))


@pytest.mark.parametrize("base", [0.0, 0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("exponent", [0, 1, 2, 7, 1000, 12_345])
def test_powers(base: float, exponent: int) -> None:
    assert math.isclose(power(base, exponent), base**exponent, rel_tol=1e-12, abs_tol=1e-300)
