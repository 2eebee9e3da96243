"""python -m tests.memory CODEC: the most memory that each of three peers takes for rounds, in vectors of parameters.

A process of its own, so that what other tests have left free is not in it; with ``FREED_AT_ONCE`` in its environment.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import torch

from bench.usage import Usage, warnings_only
from peer.rounds.context import Deadlines
from peer.values import LocalResult, RoundResult
from tests.harness import RoundPeer, swarm

FREED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""What is held is to be measured, not what malloc keeps for the next time."""
PEERS = 3
PARAMETERS = 12_000_000
"""48 MB a vector: whatever else the process does is small beside it."""
ROUNDS = 3
PATIENT = Deadlines(exchange=60.0, commit=60.0, silence=30.0)


async def take_part(peer: RoundPeer, contribution: torch.Tensor) -> RoundResult:
    """One round, to which the contribution belongs."""
    attempt = await peer.rounds.attempt()
    attempt.finish(LocalResult(contribution, 10, 1, 1.0))
    return await peer.rounds.run(attempt)


async def measure(folder: Path, codec: str) -> float:
    """Over all rounds, beyond the state and the contribution. What one of them leaves behind adds up."""
    generator = torch.Generator().manual_seed(0)
    initial = torch.randn(PARAMETERS, generator=generator)  # zeros would take no memory before they are replaced
    fields = {"initial": initial, "codec": codec, "residual": codec == "sparse", "deadlines": PATIENT}
    async with swarm(folder, PEERS, parameters=PARAMETERS, **fields) as made:
        contributions = [torch.randn(PARAMETERS, generator=generator) for _ in made.peers]
        usage = Usage()
        for _ in range(ROUNDS):
            results = await asyncio.gather(*map(take_part, made.peers, contributions))
            assert all(result.committed for result in results), results
            del results
            contributions = [torch.randn(PARAMETERS, generator=generator) for _ in made.peers]
        return float(usage.since()["peak_bytes"]) / PEERS / (4 * PARAMETERS)


if __name__ == "__main__":
    warnings_only()
    with tempfile.TemporaryDirectory(prefix="waggle-memory-") as chosen:
        print(asyncio.run(measure(Path(chosen), sys.argv[1])))
