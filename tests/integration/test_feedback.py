"""Error feedback over real streams: what the codecs leave out is all there, with those who bring it again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from peer.rounds.partition import CHUNK_VALUES
from peer.values import RoundResult
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
        assert committed.pop(lost).residual is None
        assert all(result.committed and result.residual is not None for result in committed.values())
