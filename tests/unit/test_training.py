"""Local work: gradients that add up to those of the whole batch, updates that are what the optimizer moved."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import torch
from torch import nn

from peer.inner import inner_optimizer
from peer.layout import read_gradients, read_parameters, write_parameters
from peer.tasks import TASKS, build_model
from peer.training import Trainer, choose_device, cursor_of, limit_threads
from peer.values import Batch, Cursor
from swarm.manifest import Manifest

LOSS = TASKS["causal-lm"].loss
CPU = torch.device("cpu")
LENGTH, BATCH_SIZE = 12, 3

COMMON = f"""
waggle = 1
name = "training"
[model]
type = "gpt2"
[model.config]
n_layer = 1
n_head = 2
n_embd = 16
n_positions = 16
vocab_size = 257
bos_token_id = 256
eos_token_id = 256
resid_pdrop = 0.0
embd_pdrop = 0.0
attn_pdrop = 0.0
[tokenizer]
name = "bytes"
[data]
source = "stdlib"
sequence_length = {LENGTH}
batch_size = {BATCH_SIZE}
"""
GRADIENTS = """
[outer]
optimizer = "sgd"
learning_rate = 0.1
[round]
average = "gradients"
"""
UPDATES = """
[inner]
optimizer = "adamw"
learning_rate = 0.01
clip_norm = 1.0
[inner.schedule]
warmup_steps = 4
[round]
average = "updates"
"""


def a_manifest(mode: str = GRADIENTS, amount: str = "inner_steps = 4") -> Manifest:
    return Manifest.from_toml(COMMON + mode + amount)


class Examples:
    """Random tokens, the same in every stream, kept for a reference to use."""

    def __init__(self) -> None:
        self.taken: list[torch.Tensor] = []
        self._batches = self._make()

    def _make(self) -> Iterator[Batch]:
        random = torch.Generator().manual_seed(5)
        for number in count(1):
            tokens = torch.randint(0, 257, (BATCH_SIZE, LENGTH), generator=random)
            self.taken.append(tokens)
            yield Batch(tokens, Cursor(0, number * BATCH_SIZE))

    def __next__(self) -> Batch:
        return next(self._batches)


def a_trainer(manifest: Manifest) -> tuple[Trainer, Examples]:
    examples = Examples()
    return Trainer(manifest, build_model(manifest), LOSS, examples, CPU), examples


def work(trainer: Trainer, steps: int) -> list[float]:
    return [trainer.inner_step() for _ in range(steps)]


# -- gradients -----------------------------------------------------------------------------------------------------


def test_the_contribution_is_the_mean_gradient_of_all_batches_together() -> None:
    manifest = a_manifest()
    trainer, examples = a_trainer(manifest)
    before = read_parameters(trainer.model)
    losses = work(trainer, 4)
    result = trainer.hand_in()
    assert (result.examples, result.inner_steps) == (4 * BATCH_SIZE, 4)
    assert result.loss == pytest.approx(sum(losses) / 4, rel=1e-6)
    assert torch.equal(read_parameters(trainer.model), before), "gradients leave the parameters where they are"

    reference = build_model(manifest)
    whole = LOSS(reference, torch.cat(examples.taken))
    whole.backward()
    expected = read_gradients(reference)
    assert float(whole.detach()) == pytest.approx(result.loss, rel=1e-5)
    # float32 sums over the same examples in another order
    assert float((result.contribution - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_gradients_of_two_peers_average_to_those_of_one_with_all_the_data() -> None:
    one, _ = a_trainer(a_manifest())
    work(one, 3)
    both = one.hand_in().contribution * one.examples
    rest, _ = a_trainer(a_manifest())
    other, examples = a_trainer(a_manifest())
    for _ in range(3):
        next(examples)  # the other peer's data
    work(other, 1)
    both += other.hand_in().contribution * other.examples
    work(rest, 4)
    whole = rest.hand_in().contribution
    assert float((both / 12 - whole).abs().max()) <= 1e-5 * float(whole.abs().max())


def test_loading_starts_afresh() -> None:
    trainer, _ = a_trainer(a_manifest())
    work(trainer, 2)
    new = read_parameters(trainer.model) * 0.5
    trainer.load(new)
    assert torch.equal(read_parameters(trainer.model), new)
    result = trainer.hand_in()
    assert (result.examples, result.inner_steps) == (0, 0)
    assert math.isnan(result.loss)
    assert torch.equal(result.contribution, torch.zeros_like(new))


# -- updates -------------------------------------------------------------------------------------------------------


def test_the_contribution_is_what_the_inner_optimizer_moved() -> None:
    manifest = a_manifest(UPDATES)
    trainer, examples = a_trainer(manifest)
    committed = read_parameters(trainer.model)
    work(trainer, 6)
    result = trainer.hand_in()
    local = read_parameters(trainer.model)
    assert torch.equal(result.contribution, committed - local)
    assert float(result.contribution.abs().max()) > 0.0

    # the same with torch alone: warm-up, clipping, AdamW
    reference, inner = build_model(manifest), manifest.inner
    assert inner is not None
    optimizer = torch.optim.AdamW(reference.parameters(), 0.01, inner.betas, inner.eps, inner.weight_decay)
    for step, tokens in enumerate(examples.taken):
        optimizer.param_groups[0]["lr"] = 0.01 * min(1.0, (step + 1) / 4)
        optimizer.zero_grad()
        LOSS(reference, tokens).backward()
        nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        optimizer.step()
    assert torch.equal(read_parameters(reference), local)


def test_the_inner_optimizer_lives_on_after_a_commit() -> None:
    """Its moments and its schedule; and forgetting them starts it afresh."""
    with_memory, _ = a_trainer(a_manifest(UPDATES))
    forgetting, _ = a_trainer(a_manifest(UPDATES))
    committed = read_parameters(with_memory.model)
    for trainer in (with_memory, forgetting):
        work(trainer, 5)
        trainer.load(committed)
    forgetting.forget_inner_state()
    work(with_memory, 1)
    work(forgetting, 1)
    moved = forgetting.hand_in().contribution.abs()
    # The first step of AdamW moves by the learning rate in the direction of the gradient (epsilon aside).
    assert float(moved.max()) == pytest.approx(0.01, rel=1e-3)
    assert not torch.equal(moved, with_memory.hand_in().contribution.abs())


def test_the_inner_optimizer_is_the_manifests() -> None:
    sgd = UPDATES.replace('"adamw"', '"sgd"').replace("clip_norm = 1.0", "momentum = 0.9\nnesterov = true")
    manifest = a_manifest(sgd)
    assert manifest.inner is not None
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    (optimizer,) = inner_optimizer(model, manifest.inner).parts
    assert isinstance(optimizer, torch.optim.SGD)
    (group,) = optimizer.param_groups
    assert (group["momentum"], group["nesterov"], group["lr"]) == (0.9, True, 0.01)
    assert [value.shape for value in group["params"]] == [model.weight.shape], "what is not trained is left out"


# -- both ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [GRADIENTS, UPDATES], ids=["gradients", "updates"])
def test_a_result_is_a_copy(mode: str) -> None:
    trainer, _ = a_trainer(a_manifest(mode))
    committed = read_parameters(trainer.model)
    trainer.load(committed)
    work(trainer, 1)
    first = trainer.hand_in().contribution
    before = first.clone()
    work(trainer, 1)
    assert torch.equal(first, before), "further work does not change it"
    second = trainer.hand_in().contribution.clone()
    first.zero_()
    assert torch.equal(trainer.hand_in().contribution, second), "and it changes nothing of ours"


@pytest.mark.parametrize("mode", [GRADIENTS, UPDATES], ids=["gradients", "updates"])
def test_the_committed_state_is_never_written_to(mode: str) -> None:
    trainer, _ = a_trainer(a_manifest(mode))
    committed = read_parameters(trainer.model)
    before = committed.clone()
    trainer.load(committed)
    work(trainer, 3)
    trainer.hand_in()
    assert torch.equal(committed, before)


def test_a_fixed_number_of_inner_steps_is_done_after_so_many() -> None:
    trainer, _ = a_trainer(a_manifest(amount="inner_steps = 3"))
    done = []
    for _ in range(3):
        done.append(trainer.done)
        trainer.inner_step()
    assert (done, trainer.done) == ([False, False, False], True)


@pytest.mark.parametrize("target", [3, 4, 10, 12])
def test_a_target_batch_bounds_what_one_peer_does(target: int) -> None:
    manifest = a_manifest(amount=f"target_batch = {target}")
    trainer, _ = a_trainer(manifest)
    while not trainer.done:
        trainer.inner_step()
    assert target <= trainer.examples <= manifest.max_examples_per_peer, "enough alone, and no more than others believe"


@pytest.mark.parametrize("mode", [GRADIENTS, UPDATES], ids=["gradients", "updates"])
def test_validation_measures_and_changes_nothing(mode: str) -> None:
    trainer, examples = a_trainer(a_manifest(mode))
    work(trainer, 1)
    before, contribution = read_parameters(trainer.model), trainer.hand_in().contribution
    held_out = [next(examples).tokens, next(examples).tokens[:1]]
    loss = trainer.validate(held_out)
    reference = build_model(a_manifest(mode))
    write_parameters(reference, before)
    assert loss == pytest.approx(float(LOSS(reference, torch.cat(held_out)).detach()), rel=1e-5)
    assert torch.equal(read_parameters(trainer.model), before)
    assert torch.equal(trainer.hand_in().contribution, contribution)
    assert math.isnan(trainer.validate([]))
    assert not trainer.model.training
    trainer.inner_step()
    assert trainer.model.training


def test_work_on_equal_data_is_bit_identical() -> None:
    first, second = (a_trainer(a_manifest(UPDATES))[0] for _ in range(2))
    assert work(first, 3) == work(second, 3)
    assert torch.equal(first.hand_in().contribution, second.hand_in().contribution)


# -- where it runs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode", [GRADIENTS, UPDATES, UPDATES.replace("adamw", "sgd"), UPDATES.replace("adamw", "muon")]
)
@pytest.mark.parametrize("done", [0, 3])
def test_work_that_was_saved_goes_on_bit_for_bit(mode: str, done: int) -> None:
    """Between two outer steps (0) and in the middle of local work (3); with dropout, for the random state counts."""
    manifest = Manifest.from_toml((COMMON + mode + "inner_steps = 8").replace("pdrop = 0.0", "pdrop = 0.2"))
    (whole, _), (first, _) = a_trainer(manifest), a_trainer(manifest)
    committed = read_parameters(whole.model)
    for trainer in (whole, first):
        with torch.random.fork_rng(devices=[]):
            work(trainer, 5)
            trainer.load(committed)
            work(trainer, done)
            saved = trainer.save_work()
            rest = [*work(trainer, 4), float(torch.rand(()))]
    second, examples = a_trainer(manifest)
    second.load(committed)
    for _ in range(5 + done):
        next(examples)
    with torch.random.fork_rng(devices=[]):
        second.load_work(saved)
        assert cursor_of(saved) == Cursor(0, (5 + done) * BATCH_SIZE)
        assert (second.examples, second.inner_steps) == (done * BATCH_SIZE, done)
        assert [*work(second, 4), float(torch.rand(()))] == rest
    one, other = whole.hand_in(), second.hand_in()
    assert torch.equal(one.contribution, other.contribution)
    assert (one.examples, one.inner_steps, one.loss) == (other.examples, other.inner_steps, other.loss)


def test_what_is_settled_is_as_of_the_last_commit() -> None:
    trainer, _ = a_trainer(a_manifest(UPDATES))
    committed = read_parameters(trainer.model)
    work(trainer, 3)
    trainer.load(committed)
    work(trainer, 2)
    settled = trainer.settled_work()
    assert (cursor_of(settled), settled.tensors) == (Cursor(0, 3 * BATCH_SIZE), {})
    assert (settled.facts["total_steps"], settled.facts["examples"]) == (3, 0)
    assert cursor_of(None) == Cursor()


@pytest.mark.parametrize(
    "spoil",
    [
        {"facts": {}},
        {"tensors": {"inner.0.exp_avg": torch.zeros(3)}},
        {"tensors": {"random.cpu": torch.zeros(3)}},
    ],
)
def test_work_of_another_trainer_is_refused(spoil: dict[str, Any]) -> None:
    trainer, _ = a_trainer(a_manifest(UPDATES))
    work(trainer, 1)
    saved = trainer.save_work()
    with pytest.raises((KeyError, ValueError, TypeError, RuntimeError)):
        trainer.load_work(replace(saved, **spoil))


def test_devices() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(RuntimeError):
        choose_device(f"cuda:{torch.cuda.device_count()}")
    with pytest.raises(RuntimeError):
        choose_device("abacus")


def test_threads_are_bounded_where_a_number_is_given() -> None:
    before = torch.get_num_threads()
    try:
        limit_threads(0)
        assert torch.get_num_threads() == before
        limit_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
