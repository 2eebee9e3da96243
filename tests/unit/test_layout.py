"""A model as one vector, and the digest that names a state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from peer.layout import DIGEST_CHUNK_BYTES, Layout, read_parameters, state_digest, write_parameters
from peer.state.files import load_state, save_state
from peer.values import Pending
from swarm.errors import StateError


class Tied(nn.Module):
    """Two names for one weight, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.head = nn.Linear(3, 7, bias=True)
        self.head.weight = self.embedding.weight
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)


def test_tied_weights_lie_there_once_and_frozen_ones_not_at_all() -> None:
    layout = Layout.of(Tied())
    assert layout.shapes == (("embedding.weight", (7, 3)), ("head.bias", (7,)))
    assert layout.size == 28


def test_what_is_written_is_read() -> None:
    model = Tied()
    flat = torch.arange(28, dtype=torch.float32)
    write_parameters(model, flat)
    assert torch.equal(read_parameters(model), flat)
    assert torch.equal(model.head.weight, flat[:21].view(7, 3))
    assert torch.equal(Layout.of(model).unflatten(flat)["head.bias"], flat[21:])


LAYOUT = Layout((("a", (3,)), ("b", (2, 2))))
FLAT = torch.arange(7, dtype=torch.float32)


def _digest(step: int = 1, flat: torch.Tensor = FLAT, **slots: torch.Tensor) -> str:
    return state_digest(LAYOUT, step, flat, slots)


def test_every_bit_is_in_the_digest() -> None:
    other = FLAT.clone()
    other[3] = torch.nextafter(other[3], torch.tensor(9.0))
    minus_zero = FLAT.clone()
    minus_zero[0] = -0.0
    digests = {
        _digest(), _digest(2), _digest(flat=other), _digest(flat=minus_zero), _digest(momentum=FLAT),
        _digest(moment=FLAT), _digest(a=FLAT, b=other), _digest(a=other, b=FLAT),
        state_digest(Layout((("a", (3,)), ("b", (4,)))), 1, FLAT, {}),
    }  # fmt: skip
    assert len(digests) == 9
    assert _digest(a=FLAT, b=other) == _digest(b=other, a=FLAT)  # whatever the order of the table


def test_values_beyond_the_first_chunk_count() -> None:
    count = DIGEST_CHUNK_BYTES // 4 + 5
    layout, one = Layout((("a", (count,)),)), torch.zeros(count)
    other = one.clone()
    other[-1] = 1.0
    assert state_digest(layout, 0, one, {}) != state_digest(layout, 0, other, {})


def _saved(path: Path) -> Pending:
    slots = {"momentum": FLAT * 2}
    state = Pending(4, FLAT, slots, state_digest(LAYOUT, 4, FLAT, slots))
    save_state(path, "run@0", LAYOUT, state)
    return state


def test_a_saved_state_is_loaded(tmp_path: Path) -> None:
    state = _saved(tmp_path / "state.safetensors")
    loaded = load_state(tmp_path / "state.safetensors", "run@0", LAYOUT)
    assert (loaded.outer_step, loaded.digest) == (4, state.digest)
    assert torch.equal(loaded.parameters, FLAT)
    assert torch.equal(loaded.slots["momentum"], FLAT * 2)
    assert [one.name for one in tmp_path.iterdir()] == ["state.safetensors"]


def test_foreign_and_broken_states_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    _saved(path)
    with pytest.raises(StateError, match="not of other@0"):
        load_state(path, "other@0", LAYOUT)
    with pytest.raises(StateError, match="not a state of this model"):
        load_state(path, "run@0", Layout((("c", (7,)),)))
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(StateError, match="digest"):
        load_state(path, "run@0", LAYOUT)
    path.write_bytes(data[:40])
    with pytest.raises(StateError, match="not a readable state"):
        load_state(path, "run@0", LAYOUT)


def test_a_state_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    _saved(path)
    before = path.read_bytes()
    (tmp_path / "state.writing").mkdir()  # in the way of the temporary file, for root too
    with pytest.raises(StateError, match="cannot be written"):
        _saved(path)
    assert path.read_bytes() == before
