"""Thirty outer steps of four peers: one dies in the middle of a round, one joins, and no digest ever differs."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from peer.values import Stage
from swarm.optimizer import Optimizer
from tests.harness import RoundPeer, Swarm, swarm

STEPS, DEATH, ARRIVAL = 30, 10, 15
PARAMETERS = 20_000


def _contribution(peer: int, step: int) -> torch.Tensor:
    return torch.randn(PARAMETERS, generator=torch.Generator().manual_seed(1000 * step + peer))


async def _join(made: Swarm) -> RoundPeer:
    """A newcomer downloads the committed state and then knows, and is known to, everybody."""
    donors = list(made.live)
    joiner = await made.add()
    for other in donors:
        assert await joiner.network.dial(other.peer_id, other.network.maddrs)
    assert await joiner.catch_up([one.peer_id for one in donors])
    assert joiner.store.head == donors[0].store.head
    await made.meet()
    return joiner


@pytest.mark.parametrize(
    "codec, optimizer",
    [
        pytest.param("fp32", Optimizer(optimizer="adamw", learning_rate=0.01), id="fp32-adamw"),
        pytest.param(
            "fp16", Optimizer(optimizer="sgd", learning_rate=0.7, momentum=0.9, nesterov=True), id="fp16-nesterov"
        ),
    ],
)
@pytest.mark.timeout(240)
async def test_no_digest_ever_differs(tmp_path: Path, codec: str, optimizer: Optimizer) -> None:
    digests: dict[int, set[str]] = defaultdict(set)
    async with swarm(tmp_path, 4, parameters=PARAMETERS, codec=codec, optimizer=optimizer) as made:
        victim, joiner = made.peers[2], made.peers[0]

        def die(stage: Stage, outer_step: int) -> None:
            if (stage, outer_step) == (Stage.SCATTERED, DEATH):
                victim.kill()

        victim.recorder.hook = die
        for step in range(STEPS):
            if step == ARRIVAL:
                joiner = await _join(made)
            made.see()
            at_work = [peer for peer in made.live if (peer, step) != (victim, DEATH)]
            awaited = made.live[0].store.participants or ()
            tasks = [
                peer.step_until_committed(_contribution(index, step), 10 + index) for index, peer in enumerate(at_work)
            ]
            dying = asyncio.ensure_future(victim.outer_step(_contribution(9, step), 10)) if step == DEATH else None
            results = await asyncio.wait_for(asyncio.gather(*tasks), 60)
            if dying is not None:
                dying.cancel()
                await asyncio.gather(dying, return_exceptions=True)
                assert victim.dead
            if step >= ARRIVAL and results[-1].reason == "behind":
                # Nobody waits for whom the last link does not name: it came a moment too late, and downloads again.
                assert at_work[-1] is joiner
                assert joiner.peer_id not in awaited
                assert await joiner.catch_up([one.peer_id for one in at_work[:-1]])
                results.pop()
            assert all(result.committed for result in results), (step, results)
            for peer in at_work:
                assert peer.store.head.outer_step == step + 1
                digests[step + 1].add(peer.store.head.digest)
        assert len(made.live[0].store.participants or ()) == 4
    assert sorted(digests) == list(range(1, STEPS + 1))
    assert all(len(same) == 1 for same in digests.values())
    assert len(set.union(*digests.values())) == STEPS
