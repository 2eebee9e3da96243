"""The article's case: what a swarm computes from its shares is what one process computes from all the data."""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from peer.layout import read_gradients, read_parameters
from peer.rounds.context import Deadlines
from peer.training import Trainer
from peer.values import Batch, Cursor
from swarm.manifest import Manifest
from swarm.optimizer import Optimizer
from tests.harness import RoundPeer, Swarm, agreed, swarm

PEERS, EXAMPLES = 10, 1000
EVEN = [100] * PEERS
UNEVEN = list(range(10, 200, 20))  # 10, 30 ... 190: 1000 together
SECONDS = 120.0
CPU = torch.device("cpu")

MANIFEST = """
waggle = 1
name = "exactness"
task = "causal-lm"
[model]
type = "gpt2"
[tokenizer]
name = "bytes"
[data]
source = "stdlib"
sequence_length = 2
batch_size = {batch_size}
[round]
average = "{average}"
{amount}
codec = "fp32"
"""
GRADIENTS = (
    MANIFEST.format(batch_size="{batch_size}", average="gradients", amount="target_batch = 1000")
    + """
[outer]
optimizer = "sgd"
learning_rate = 1.0
"""
)
UPDATES = (
    MANIFEST.format(batch_size=100, average="updates", amount="inner_steps = 1")
    + """
[inner]
optimizer = "sgd"
learning_rate = 0.1
"""
)


@dataclass(frozen=True)
class Data:
    """inputs: float32 [1000, 8]. targets: float32 [1000, 1]."""

    inputs: torch.Tensor
    targets: torch.Tensor

    @classmethod
    def make(cls) -> Data:
        generator = torch.Generator().manual_seed(7)
        inputs = torch.randn(EXAMPLES, 8, generator=generator)
        noise = torch.randn(EXAMPLES, 1, generator=generator)
        return cls(inputs, torch.sin(inputs[:, :1]) + inputs[:, 1:2] * inputs[:, 2:3] + 0.1 * noise)

    def loss(self, model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
        """Mean squared error over ``rows``, int64 [batch, 1]: what a task's loss is to the Trainer."""
        rows = rows.flatten()
        return nn.functional.mse_loss(model(self.inputs[rows]), self.targets[rows])


def network() -> nn.Module:
    """A regression with one hidden layer: 305 parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return nn.Sequential(nn.Linear(8, 30), nn.Tanh(), nn.Linear(30, 1))


def batches(first: int, count: int, size: int) -> Iterator[Batch]:
    """The rows ``first`` .. ``first + count`` over and over, ``size`` at a time."""
    while True:
        for start in range(first, first + count, size):
            yield Batch(torch.arange(start, start + size)[:, None], Cursor())


def exact_gradient(data: Data, model: nn.Module) -> torch.Tensor:
    """Over all examples, computed in float64."""
    model = copy.deepcopy(model).double()
    model.zero_grad()
    nn.functional.mse_loss(model(data.inputs.double()), data.targets.double()).backward()
    return torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None])


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative to the norm of ``other``."""
    return float((one - other).norm() / other.norm())


def alone(data: Data, optimizer: torch.optim.Optimizer, model: nn.Module, steps: int) -> torch.Tensor:
    """The parameters after ``steps`` of one process on all examples."""
    for _ in range(steps):
        optimizer.zero_grad()
        data.loss(model, torch.arange(EXAMPLES)).backward()
        optimizer.step()
    return read_parameters(model)


# Nothing goes wrong here, but ten p2pd share the machine with whatever else it does.
PATIENT = Deadlines(exchange=30.0, commit=30.0, seat=10.0, alive=0.5, silence=10.0)


async def together(
    made: Swarm, trainers: list[Trainer], shares: list[int], steps: int, start: torch.Tensor | None = None
) -> list[RoundPeer]:
    """``steps`` outer steps of the swarm, before each of which each peer works through its share.

    start: where all local work begins, instead of the committed parameters.
    """
    for _ in range(steps):
        contributions, examples = {}, {}
        for peer, trainer, share in zip(made.peers, trainers, shares, strict=True):
            trainer.load(peer.parameters if start is None else start)
            while trainer.examples < share:
                trainer.inner_step()
            result = trainer.hand_in()
            contributions[peer.peer_id], examples[peer.peer_id] = result.contribution, result.examples
        results = await made.step(contributions, examples)
        assert all(result.committed and not result.refused for result in results)
        assert {result.group_size for result in results} == {PEERS}
    agreed(made.peers)
    return made.peers


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is faster without threads, above all where ten p2pd share the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trainers(text: str, data: Data, shares: list[int]) -> list[Trainer]:
    """One for each share, with batches as large as all shares allow."""
    manifest = Manifest.from_toml(text.format(batch_size=math.gcd(*shares)))
    firsts = [sum(shares[:index]) for index in range(PEERS)]
    size = manifest.data.batch_size
    return [
        Trainer(manifest, network(), data.loss, batches(first, share, size), CPU)
        for first, share in zip(firsts, shares, strict=True)
    ]


@pytest.mark.parametrize(
    ("codec", "shares"),
    [("fp32", EVEN), ("fp32", UNEVEN), ("fp16", EVEN)],
    ids=["fp32-even", "fp32-uneven", "fp16-even"],
)
async def test_mean_of_one_round_is_the_gradient_over_all_examples(
    tmp_path: Path, codec: str, shares: list[int]
) -> None:
    data, model = Data.make(), network()
    data.loss(model, torch.arange(EXAMPLES)).backward()
    single = read_gradients(model).double()
    exact = exact_gradient(data, model)
    # From zeros and with a learning rate of 1 the committed parameters are the mean, negated, without any rounding.
    start = read_parameters(model)
    async with swarm(tmp_path, PEERS, deadlines=PATIENT, parameters=start.numel(), codec=codec) as made:
        work = together(made, trainers(GRADIENTS, data, shares), shares, 1, start)
        peers = await asyncio.wait_for(work, SECONDS)
        means = [-peer.parameters.double() for peer in peers]
    assert all(torch.equal(mean, means[0]) for mean in means)
    error = max(distance(means[0], one) for one in (single, exact))
    print(f"{codec}: relative error by norms: {error:.2e}; that of one process: {distance(single, exact):.2e}")
    # fp32: a few roundings of 2**-24. fp16: 2**-11 per value, once for a contribution and once for the mean, which
    # is what a norm can be off by at most; rounding errors of ten peers partly cancel.
    assert error <= (1e-6 if codec == "fp32" else 2 * 2**-11)


OPTIMIZERS = {
    "sgd": Optimizer(optimizer="sgd", learning_rate=0.1, momentum=0.9, nesterov=True),
    "adamw": Optimizer(optimizer="adamw", learning_rate=0.01, weight_decay=0.01),
}


@pytest.mark.parametrize(("name", "shares"), [("sgd", EVEN), ("adamw", UNEVEN)], ids=["sgd-even", "adamw-uneven"])
async def test_twenty_outer_steps_end_where_one_process_ends(tmp_path: Path, name: str, shares: list[int]) -> None:
    data, model, settings = Data.make(), network(), OPTIMIZERS[name]
    start = read_parameters(model)
    async with swarm(
        tmp_path, PEERS, deadlines=PATIENT, parameters=start.numel(), optimizer=settings, initial=start
    ) as made:
        peers = await asyncio.wait_for(together(made, trainers(GRADIENTS, data, shares), shares, 20), SECONDS)
        parameters = peers[0].parameters
    rate, parameters_of = settings.learning_rate, model.parameters()
    reference: torch.optim.Optimizer = (
        torch.optim.SGD(parameters_of, rate, momentum=0.9, nesterov=True)
        if name == "sgd"
        else torch.optim.AdamW(parameters_of, rate, settings.betas, settings.eps, settings.weight_decay)
    )
    expected = alone(data, reference, model, 20)
    _assert_same_run(parameters, expected, start)


async def test_one_plain_inner_step_is_the_same_run(tmp_path: Path) -> None:
    data, model = Data.make(), network()
    start = read_parameters(model)
    async with swarm(tmp_path, PEERS, deadlines=PATIENT, parameters=start.numel(), initial=start) as made:
        peers = await asyncio.wait_for(together(made, trainers(UPDATES, data, EVEN), EVEN, 20), SECONDS)
        parameters = peers[0].parameters
    expected = alone(data, torch.optim.SGD(model.parameters(), 0.1), model, 20)
    _assert_same_run(parameters, expected, start)


def _assert_same_run(parameters: torch.Tensor, expected: torch.Tensor, start: torch.Tensor) -> None:
    """Both runs round each of 20 steps on their own: a few units of 2**-24 of a value of about 1 are left between."""
    assert float((expected - start).norm() / start.norm()) > 0.1  # they did go somewhere
    print(f"largest difference after 20 outer steps: {float((parameters - expected).abs().max()):.2e}")
    torch.testing.assert_close(parameters, expected, rtol=1e-5, atol=1e-6)
