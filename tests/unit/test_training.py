"""Local work: gradients add up to the mean over the union of batches, updates to committed minus local."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from peer.layout import Layout, read_parameters
from peer.training import Trainer, choose_device
from peer.values import Batch, Cursor
from swarm.manifest import Manifest

BATCH = 4
BASE: dict[str, Any] = {
    "waggle": 1,
    "name": "training",
    "model": {"type": "gpt2", "config": {}},
    "tokenizer": {"name": "bytes"},
    "data": {"source": "stdlib", "sequence_length": 8, "batch_size": BATCH},
}
GRADIENTS = {"outer": {"optimizer": "sgd", "learning_rate": 1.0}, "round": {"average": "gradients", "inner_steps": 3}}
UPDATES = {
    "inner": {"optimizer": "sgd", "learning_rate": 0.1},
    "round": {"average": "updates", "inner_steps": 3},
}


def _manifest(**changes: Any) -> Manifest:
    return Manifest.model_validate({**BASE, **changes})


def _model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 1))


def _loss(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    inputs = tokens.float() / 100
    return (model(inputs)[:, 0] - inputs.sum(1)).square().mean()


def _tokens() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 257, (BATCH, 8), generator=generator) for _ in range(100)]


def _batches() -> Iterator[Batch]:
    return iter([Batch(tokens, Cursor(0, BATCH * index)) for index, tokens in enumerate(_tokens(), start=1)])


def _trainer(manifest: Manifest) -> Trainer:
    return Trainer(manifest, _model(), _loss, _batches(), torch.device("cpu"))


def _work(trainer: Trainer) -> None:
    while not trainer.done:
        trainer.inner_step()


def test_gradients_are_those_of_the_union() -> None:
    trainer = _trainer(_manifest(**GRADIENTS))
    _work(trainer)
    result = trainer.result()
    assert (result.examples, result.inner_steps) == (3 * BATCH, 3)
    model = _model()
    loss = _loss(model, torch.cat(_tokens()[:3]))
    loss.backward()
    expected = torch.cat([value.grad.reshape(-1) for value in model.parameters() if value.grad is not None])
    torch.testing.assert_close(result.contribution, expected, rtol=1e-5, atol=1e-7)
    assert result.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert torch.equal(read_parameters(trainer.model), read_parameters(_model()))  # nothing moved


def test_updates_are_committed_minus_local_and_load_starts_afresh() -> None:
    trainer = _trainer(_manifest(**UPDATES))
    committed = read_parameters(_model())
    trainer.load(committed)
    _work(trainer)
    result = trainer.result()
    assert torch.equal(result.contribution, committed - read_parameters(trainer.model))
    assert float(result.contribution.abs().sum()) > 0
    trainer.load(committed)
    assert (trainer.examples, trainer.inner_steps) == (0, 0)
    assert torch.equal(read_parameters(trainer.model), committed)
    assert float(trainer.result().contribution.abs().sum()) == 0


def test_the_result_is_a_copy() -> None:
    trainer = _trainer(_manifest(**GRADIENTS))
    trainer.inner_step()
    contribution = trainer.result().contribution
    before = contribution.clone()
    trainer.inner_step()
    assert torch.equal(contribution, before)


def test_target_batch_bounds_what_one_peer_may_do() -> None:
    rules = {"round": {"average": "gradients", "target_batch": 10}, "outer": GRADIENTS["outer"]}
    trainer = _trainer(_manifest(**rules))
    _work(trainer)
    assert trainer.examples <= _manifest(**rules).max_examples_per_peer
    assert trainer.examples + BATCH > _manifest(**rules).max_examples_per_peer


def test_validation_is_the_mean_over_examples() -> None:
    trainer = _trainer(_manifest(**UPDATES))
    uneven = [_tokens()[0], _tokens()[1][:1]]
    with torch.no_grad():
        expected = float(_loss(_model(), torch.cat(uneven)))
    assert trainer.validate(uneven) == pytest.approx(expected, rel=1e-6)


def test_no_work_is_a_contribution_of_nothing() -> None:
    result = _trainer(_manifest(**GRADIENTS)).result()
    assert result.examples == 0
    assert result.contribution.shape == (Layout.of(_model()).size,)
    assert float(result.contribution.abs().sum()) == 0


def test_a_device_that_is_not_there_is_refused() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    missing = "cuda:99" if torch.cuda.is_available() else "cuda"
    with pytest.raises(RuntimeError, match="CUDA"):
        choose_device(missing)
