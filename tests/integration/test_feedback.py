"""Error feedback over real streams: what the codecs leave out is all there, with those who bring it again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from peer.rounds.context import RoundError
from peer.rounds.partition import CHUNK_VALUES
from peer.values import RoundResult, Stage
from tests.harness import RoundPeer, swarm

PARAMETERS = 3 * CHUNK_VALUES + 5000
WEIGHTS = (10, 20, 30)


def step(peer: RoundPeer, contribution: torch.Tensor, examples: int) -> asyncio.Task[RoundResult]:
    return asyncio.ensure_future(peer.outer_step(contribution, examples))


def mean(vectors: list[torch.Tensor], weights: tuple[int, ...]) -> torch.Tensor:
    return sum(vector.double() * weight for vector, weight in zip(vectors, weights, strict=True)) / sum(weights)


@pytest.mark.parametrize(
    ("codec", "mean_keep_one_in", "most"),
    [("int4", None, PARAMETERS), ("sparse", None, PARAMETERS / 50), ("sparse", 16, PARAMETERS / 15)],
    ids=["int4", "sparse", "denser-mean"],
)
async def test_nothing_is_lost(tmp_path: Path, codec: str, mean_keep_one_in: int | None, most: float) -> None:
    fields = {"codec": codec, "mean_keep_one_in": mean_keep_one_in, "residual": True}
    async with swarm(tmp_path, 3, parameters=PARAMETERS, **fields) as made:
        generator = torch.Generator().manual_seed(1)
        vectors = [torch.randn(PARAMETERS, generator=generator) for _ in made.peers]
        results = await asyncio.gather(
            *(step(peer, vector, weight) for peer, vector, weight in zip(made.peers, vectors, WEIGHTS, strict=True))
        )
        assert all(result.committed for result in results), results
        assert len({peer.store.head.digest for peer in made.peers}) == 1
        residuals = [result.residual for result in results if result.residual is not None]
        assert len(residuals) == 3
        moved = -made.peers[0].parameters  # SGD at 1.0, from zeros: the mean as everyone decoded it
        assert most / 3 < moved.count_nonzero() <= most
        torch.testing.assert_close(moved.double() + mean(residuals, WEIGHTS), mean(vectors, WEIGHTS), rtol=0, atol=1e-4)


async def test_a_contribution_that_does_not_count_leaves_no_residual(tmp_path: Path) -> None:
    async with swarm(tmp_path, 3, parameters=PARAMETERS, codec="int4", residual=True) as made:
        vectors = [torch.ones(PARAMETERS), torch.ones(PARAMETERS), 1e6 * torch.ones(PARAMETERS)]
        results = await asyncio.gather(
            *(step(peer, vector, 10) for peer, vector in zip(made.peers, vectors, strict=True))
        )
        committed = {peer.peer_id: result for peer, result in zip(made.peers, results, strict=True)}
        lost = made.peers[2].peer_id
        assert made.peers[0].store.history.certificates[-1].link.participants.keys() == committed.keys() - {lost}
        refused = committed.pop(lost)
        assert (refused.committed, refused.counted, refused.residual) == (True, False, None)
        assert all(result.counted and result.residual is not None for result in committed.values())


async def test_what_counted_and_came_from_others_is_told_apart_from_what_did_not_count(tmp_path: Path) -> None:
    """A link that was finished in a later ballot: what a peer kept before is in it, even if it cannot say how much."""
    async with swarm(tmp_path, 4, parameters=PARAMETERS, codec="int4", residual=True) as made:
        ones = {peer.peer_id: torch.ones(PARAMETERS) for peer in made.live}
        assert all(result.counted for result in await made.step(ones))
        leader, first, second, late = made.ordered(1)
        fails = iter([True])

        def late_gets_no_mean(stage: Stage, outer_step: int) -> None:
            if (stage, outer_step) == (Stage.GATHERED, 1) and next(fails, False):
                raise RoundError("reducer-gone", late.peer_id)

        def dies_before_it_says_so(stage: Stage, outer_step: int) -> None:
            if (stage, outer_step) == (Stage.VOTED, 1) and not leader.dead:
                leader.kill()

        late.recorder.hook = late_gets_no_mean
        first.recorder.hook = second.recorder.hook = dies_before_it_says_so
        leading = step(leader, ones[leader.peer_id], 10)
        results = await made.step(ones, peers=(first, second, late))
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)
        link = late.store.history.certificates[-1].link
        assert set(link.participants) == set(ones), "the dead leader's contribution counts, too"
        assert late.store.head == first.store.head == second.store.head
        assert [(result.committed, result.counted) for result in results] == [(True, True)] * 3
        assert results[2].residual is None
