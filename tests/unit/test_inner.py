"""Inner optimizers: which parameters each has, what its steps are, and a state that goes out and in again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from peer.inner import InnerOptimizer, inner_optimizer
from peer.layout import trained
from peer.tasks import build_model
from swarm.errors import ManifestError
from swarm.manifest import Manifest
from swarm.optimizer import Optimizer
from tests.unit.test_training import UPDATES, a_manifest

RATE = 0.02
MUON = Optimizer(optimizer="muon", learning_rate=RATE)
LLAMA = """
waggle = 1
name = "inner"
tokenizer.name = "bytes"
inner = { optimizer = "muon", learning_rate = 0.02 }
data = { source = "stdlib", sequence_length = 8, batch_size = 1 }
round = { average = "updates", inner_steps = 1 }
[model]
type = "llama"
config.num_hidden_layers = 1
config.num_attention_heads = 2
config.num_key_value_heads = 1
config.hidden_size = 8
config.intermediate_size = 12
config.vocab_size = 257
config.bos_token_id = 256
config.eos_token_id = 256
"""


def by_part(model: nn.Module, optimizer: InnerOptimizer) -> dict[str, set[str]]:
    """Names of the parameters by the class that has them; each has exactly one."""
    names = {id(value): name for name, value in trained(model)}
    found = {
        type(part).__name__: [names[id(p)] for g in part.param_groups for p in g["params"]] for part in optimizer.parts
    }
    assert sorted(name for group in found.values() for name in group) == sorted(names.values())
    return {kind: set(group) for kind, group in found.items()}


@pytest.mark.parametrize("tied", ["true", "false"])
def test_muon_has_the_hidden_matrices_and_adamw_the_rest(tied: str) -> None:
    model = build_model(Manifest.from_toml(LLAMA + f"config.tie_word_embeddings = {tied}"))
    parts = by_part(model, inner_optimizer(model, MUON))
    layer = "model.layers.0"
    attention = {f"{layer}.self_attn.{one}_proj.weight" for one in "qkvo"}
    assert parts["Muon"] == attention | {f"{layer}.mlp.{one}_proj.weight" for one in ("gate", "up", "down")}
    assert "model.embed_tokens.weight" in parts["AdamW"]
    assert ("lm_head.weight" in parts["AdamW"]) == (tied == "false")


def test_positions_and_biases_are_adamws_too() -> None:
    model = build_model(a_manifest(UPDATES.replace("adamw", "muon")))
    parts = by_part(model, inner_optimizer(model, MUON))
    assert {"transformer.wte.weight", "transformer.wpe.weight", "transformer.h.0.mlp.c_fc.bias"} <= parts["AdamW"]
    assert parts["Muon"] == {
        f"transformer.h.0.{one}.weight" for one in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }


def test_what_is_not_trained_is_nobodys() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    (muon,) = inner_optimizer(model, MUON).parts
    assert isinstance(muon, torch.optim.Muon)
    assert [value.shape for value in muon.param_groups[0]["params"]] == [(2, 2)]
    (adamw,) = inner_optimizer(nn.Embedding(3, 2), MUON).parts
    assert isinstance(adamw, torch.optim.AdamW)


def moved(settings: Optimizer, rate: float, gradients: list[torch.Tensor]) -> tuple[torch.Tensor, InnerOptimizer]:
    """How far one matrix of zeros goes, and what moved it."""
    model = nn.Linear(*reversed(gradients[0].shape), bias=False)
    nn.init.zeros_(model.weight)
    optimizer = inner_optimizer(model, settings)
    for gradient in gradients:
        model.weight.grad = gradient.clone()
        optimizer.step(rate)
    return model.weight.detach(), optimizer


@pytest.mark.parametrize("shape", [(16, 64), (64, 16), (32, 32)])
@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_a_step_of_muon_is_an_orthogonal_matrix_of_the_size_of_adamws(shape: tuple[int, int], size: float) -> None:
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * size
    step, _ = moved(MUON, RATE, [gradient])
    singular = torch.linalg.svdvals(step)
    # Newton-Schulz in bfloat16 brings all singular values near 1, not to it (Jordan 2024: 0.7 to 1.2).
    scale = RATE * 0.2 * max(shape) ** 0.5
    assert 0.6 * scale < float(singular.min())
    assert float(singular.max()) < 1.3 * scale
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    assert float(torch.cosine_similarity(-step.flatten(), (u @ v).flatten(), dim=0)) > 0.95
    assert float(step.square().mean().sqrt()) == pytest.approx(0.2 * RATE, rel=0.2), "as AdamW's typically are"


def test_muons_momentum_is_nesterovs() -> None:
    first, second = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(2))
    settings = Optimizer(optimizer="muon", learning_rate=RATE, momentum=0.8)
    both, optimizer = moved(settings, RATE, [first, second])
    buffer = optimizer.tensors()["0.momentum_buffer"]
    assert torch.allclose(buffer, 0.8 * 0.2 * first + 0.2 * second, atol=1e-6)
    plain = Optimizer(optimizer="muon", learning_rate=RATE, momentum=0.0)
    looked_ahead, _ = moved(plain, RATE, [0.2 * second + 0.8 * buffer])
    alone, _ = moved(settings, RATE, [first])
    assert torch.allclose(both - alone, looked_ahead, atol=RATE * 0.05), "the direction is that of a step further on"


SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "adamw": {"optimizer": "adamw", "betas": (0.8, 0.9), "weight_decay": 0.1},
    "muon": {"optimizer": "muon", "betas": (0.8, 0.9), "weight_decay": 0.1},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_state_goes_out_and_in_again(name: str) -> None:
    settings, random = Optimizer(learning_rate=RATE, **SETTINGS[name]), torch.Generator().manual_seed(3)

    def work(model: nn.Module, optimizer: InnerOptimizer, inputs: torch.Tensor) -> None:
        optimizer.zero_grad()
        model(inputs).square().sum().backward()
        optimizer.step(RATE)

    def a_model() -> nn.Sequential:
        return nn.Sequential(nn.Embedding(9, 4), *(nn.Linear(4, 4) for _ in range(6)))  # indices of one digit and two

    first, second = a_model(), a_model()
    one = inner_optimizer(first, settings)
    inputs = [torch.randint(0, 9, (5,), generator=random) for _ in range(6)]
    for batch in inputs[:3]:
        work(first, one, batch)
    saved, other = one.tensors(), inner_optimizer(second, settings)
    second.load_state_dict(first.state_dict())
    kept = {key: value.clone() for key, value in saved.items()}
    other.load(saved)
    for batch in inputs[3:]:
        work(first, one, batch)
        work(second, other, batch)
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert all(torch.equal(one.tensors()[key], value) for key, value in other.tensors().items())
    assert one.tensors().keys() == kept.keys()


def test_a_state_of_another_shape_is_refused() -> None:
    optimizer = inner_optimizer(nn.Linear(2, 3), MUON)
    with pytest.raises(ValueError, match=r"inner\.0\.momentum_buffer has the shape"):
        optimizer.load({"0.momentum_buffer": torch.zeros(2, 3)})


def test_a_torch_without_muon_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ManifestError, match=r"inner.optimizer: 'muon' needs torch 2.9 or newer, and this is"):
        inner_optimizer(nn.Linear(2, 2), MUON)
