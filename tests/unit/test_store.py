"""The committed state: what an outer step makes of it."""

from __future__ import annotations

import asyncio

import pytest
import torch

from peer.layout import CHUNK_VALUES, Layout, named_state
from peer.optimizers import outer_optimizer
from peer.state.store import Store
from swarm.optimizer import Optimizer

SIZE = 2 * CHUNK_VALUES + 17
LAYOUT = Layout((("weight", (SIZE,)),))
OPTIMIZERS = {
    "sgd": Optimizer(optimizer="sgd", learning_rate=1.0),
    "nesterov": Optimizer(optimizer="sgd", learning_rate=0.7, momentum=0.9, nesterov=True, clip_norm=0.5),
    "adamw": Optimizer(optimizer="adamw", learning_rate=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_proposal_made_in_pieces_is_the_outer_step_of_the_whole(name: str) -> None:
    torch.manual_seed(0)
    first, optimizer = torch.randn(SIZE), outer_optimizer(OPTIMIZERS[name])
    store = Store("run", LAYOUT, first.clone(), optimizer)
    base = store.committed
    for value in base.slots.values():
        value.uniform_()
    mean, square_norm = torch.randn(SIZE), float(SIZE)
    parameters, slots = optimizer.step(first, base.slots, mean.clone(), square_norm, 0)
    whole = named_state(LAYOUT, 1, parameters, slots)

    proposal = asyncio.run(store.propose(mean, square_norm))
    assert (proposal.outer_step, proposal.digest, proposal.hashes) == (1, whole.digest, whole.hashes)
    assert torch.equal(proposal.parameters, parameters)
    assert set(proposal.slots) == set(slots)
    assert all(torch.equal(proposal.slots[slot], slots[slot]) for slot in slots)
    assert torch.equal(store.committed.parameters, first), "what is committed is never modified"
    assert store.find(proposal.digest) is proposal
    assert store.head.outer_step == 0
