"""What a round holds beside the parameters: docs/protocol.md adds it up, this measures it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from bench.usage import Usage
from peer.rounds.context import Deadlines
from peer.values import LocalResult, RoundResult
from tests.harness import RoundPeer, swarm

PEERS = 3
PARAMETERS = 12_000_000
VECTOR_BYTES = 4 * PARAMETERS
"""Large enough that whatever else this process does is small beside it."""
KEPT = 1.5
"""malloc keeps up to half of it again: chunks come and go in many threads, and to give each back costs more CPU."""
SLACK = 0.3
"""What is under way, in buffers and in threads."""
PATIENT = Deadlines(exchange=60.0, commit=60.0, silence=30.0)


@pytest.mark.parametrize(
    ("codec", "residual", "documented"),
    [
        ("fp32", False, 1 + 2 / PEERS),  # the members' values for our part, and two means of it
        ("int8", False, (1 + 2 / PEERS) / 4),
        ("sparse", True, 1 + 1 / PEERS),  # the remainder, and that of our part of the mean; the rest is nothing
    ],
)
async def test_rounds_take_no_more_than_is_documented(
    tmp_path: Path, codec: str, residual: bool, documented: float
) -> None:
    async def take_part(peer: RoundPeer, contribution: torch.Tensor) -> RoundResult:
        attempt = await peer.rounds.attempt()
        attempt.finish(LocalResult(contribution, 10, 1, 1.0))
        return await peer.rounds.run(attempt)

    generator = torch.Generator().manual_seed(0)
    initial = torch.randn(PARAMETERS, generator=generator)  # zeros would take no memory before they are replaced
    fields = {"initial": initial, "codec": codec, "residual": residual, "deadlines": PATIENT}
    async with swarm(tmp_path, PEERS, parameters=PARAMETERS, **fields) as made:
        contributions = [torch.randn(PARAMETERS, generator=generator) for _ in made.peers]
        usage = Usage()
        for _ in range(3):  # what one round leaves behind may not add up
            results = await asyncio.gather(*map(take_part, made.peers, contributions))
            assert all(result.committed for result in results), results
            del results
            contributions = [torch.randn(PARAMETERS, generator=generator) for _ in made.peers]
        peak = usage.since()["peak_bytes"] / PEERS / VECTOR_BYTES
        print(f"{codec}: {peak:.2f} vectors for each peer, {documented:.2f} documented")
        assert peak <= KEPT * documented + SLACK
