"""The flat vector of a real model, and the digest that names a state."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from peer.layout import (
    DIGEST_CHUNK_BYTES,
    Layout,
    read_gradients,
    read_parameters,
    state_digest,
    trained,
    write_parameters,
)
from peer.tasks import build_model
from swarm.manifest import Manifest

MANIFEST = """
waggle = 1
name = "tied"
[model]
type = "gpt2"
config = { n_layer = 1, n_head = 2, n_embd = 16, n_positions = 32, vocab_size = 257, tie_word_embeddings = true }
[tokenizer]
name = "bytes"
[data]
source = "stdlib"
sequence_length = 16
batch_size = 2
[outer]
optimizer = "sgd"
learning_rate = 0.1
[round]
average = "gradients"
inner_steps = 1
"""
LAYOUT = Layout((("weight", (2, 3)), ("bias", (2,)), ("scale", ())))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A gpt2: its output layer shares the weights of the token embedding."""
    return build_model(Manifest.from_toml(MANIFEST))


def tied(model: nn.Module) -> bool:
    return model.get_submodule("lm_head").weight is model.get_parameter("transformer.wte.weight")


def digest_of(parameters: torch.Tensor, outer_step: int = 3, **slots: torch.Tensor) -> str:
    return state_digest(Layout((("weight", tuple(parameters.shape)),)), outer_step, parameters, slots)


# -- the flat vector -----------------------------------------------------------------------------------------------


def test_tied_weights_lie_in_the_vector_once(model: nn.Module) -> None:
    layout = Layout.of(model)
    names = [name for name, _ in layout.shapes]
    assert len(set(names)) == len(names)
    assert "transformer.wte.weight" in names
    assert "lm_head.weight" not in names
    assert tied(model)
    assert layout.size == len(read_parameters(model)) == sum(value.numel() for value in model.parameters())


def test_what_is_written_is_read_and_tied_weights_stay_tied(model: nn.Module) -> None:
    before = read_parameters(model)
    new = torch.randn(len(before), generator=torch.Generator().manual_seed(1))
    try:
        write_parameters(model, new)
        assert torch.equal(read_parameters(model), new)
        assert tied(model)
        for name, value in Layout.of(model).unflatten(new).items():
            assert torch.equal(value, model.get_parameter(name).detach())
    finally:
        write_parameters(model, before)


def test_reading_copies(model: nn.Module) -> None:
    for one in (model, nn.Linear(3, 1, bias=False)):
        before = read_parameters(one)
        read_parameters(one).zero_()
        assert torch.equal(read_parameters(one), before)
        one.zero_grad()
        assert torch.equal(read_gradients(one), torch.zeros_like(before)), "zeros where there is no gradient"


def test_gradients_lie_as_the_parameters_do() -> None:
    linear = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    linear[0].bias.requires_grad_(False)  # not trained, so not in the vector
    assert [name for name, _ in trained(linear)] == ["0.weight", "1.weight", "1.bias"]
    linear[1](linear[0](torch.ones(1, 3))).sum().backward()
    by_name = Layout.of(linear).unflatten(read_gradients(linear))
    for name, value in trained(linear):
        assert value.grad is not None
        assert torch.equal(by_name[name], value.grad)


def test_unflattening_views_the_vector() -> None:
    flat = torch.arange(9.0)
    views = LAYOUT.unflatten(flat)
    assert {name: value.tolist() for name, value in views.items()} == {
        "weight": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
        "bias": [6.0, 7.0],
        "scale": 8.0,
    }
    assert LAYOUT.size == 9
    views["bias"][0] = -1.0
    assert flat[6] == -1.0


# -- the digest ----------------------------------------------------------------------------------------------------


def test_the_digest_is_that_of_the_bits() -> None:
    values = torch.tensor([1.0, 0.0, -3.5])
    assert digest_of(values) == digest_of(values.clone())
    assert digest_of(values) != digest_of(torch.tensor([1.0, -0.0, -3.5])), "equal numbers, other bits"
    one_ulp = torch.nextafter(values[0], torch.tensor(2.0))
    assert digest_of(values) != digest_of(torch.tensor([float(one_ulp), 0.0, -3.5]))
    assert len(digest_of(values)) == 64


def test_the_digest_stays_what_it_was() -> None:
    """Other machines and later versions compute this one: a change makes old histories unreadable."""
    parameters = torch.arange(9.0) / 8
    digest = state_digest(LAYOUT, 3, parameters, {"momentum": -parameters})
    assert digest == "e2231f7a6dfab9d564b35f528d2d75d2f153fb1db982e03b0e799811bd6dd8ca"


@given(st.data())
def test_any_change_of_a_value_changes_the_digest(data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([1, 7, 1000]))
    index = data.draw(st.integers(0, size - 1))
    bit = data.draw(st.integers(0, 31))
    where = data.draw(st.sampled_from(["parameters", "first", "second"]))
    vectors = {name: torch.ones(size) for name in ("parameters", "first", "second")}
    before = digest_of(vectors["parameters"], first=vectors["first"], second=vectors["second"])
    raw = vectors[where].view(torch.int32)
    raw[index] ^= (1 << bit) if bit < 31 else -(1 << 31)
    assert digest_of(vectors["parameters"], first=vectors["first"], second=vectors["second"]) != before


def test_step_slots_and_shapes_are_in_the_digest() -> None:
    values, zeros = torch.ones(6), torch.zeros(6)
    digests = {
        digest_of(values),
        digest_of(values, 4),
        digest_of(values, 34),
        digest_of(values, momentum=zeros),
        digest_of(values, moment=zeros),
        digest_of(zeros, momentum=values),
        digest_of(values, momentum=values),
        digest_of(values, first=values, second=zeros),
        digest_of(values, first=zeros, second=values),
        state_digest(Layout((("weight", (2, 3)),)), 3, values, {}),
        state_digest(Layout((("weight", (3, 2)),)), 3, values, {}),
        state_digest(Layout((("other", (6,)),)), 3, values, {}),
        state_digest(Layout((("a", (3,)), ("b", (3,)))), 3, values, {}),
    }
    assert len(digests) == 13
    forwards = state_digest(LAYOUT, 3, values, {"first": values, "second": zeros})
    assert forwards == state_digest(LAYOUT, 3, values, {"second": zeros, "first": values}), "slots have no order"


def test_the_last_value_of_every_chunk_counts() -> None:
    chunk = DIGEST_CHUNK_BYTES // 4
    values = torch.zeros(2 * chunk + 1)
    before = digest_of(values)
    for index in (chunk - 1, chunk, 2 * chunk - 1, 2 * chunk):
        values[index] = 1.0
        assert digest_of(values) != before
        values[index] = 0.0
    assert digest_of(values) == before
