"""Parts follow what links can do, as real exchanges showed it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import torch

from peer.rounds.codec import Float32Codec
from peer.rounds.partition import CHUNK_VALUES
from tests.harness import DEADLINES, RoundPeer, Swarm, agreed

CHUNKS_EACH = 4
PEERS = 4
PARAMETERS = PEERS * CHUNKS_EACH * CHUNK_VALUES


class PacedCodec(Float32Codec):
    """Takes so long for a chunk: the uplink of this peer. A mean that it encodes is as slow."""

    def __init__(self, seconds: float):
        self._seconds = seconds

    def encode(self, values: torch.Tensor) -> bytes:
        time.sleep(self._seconds)  # in a thread, as all encoding
        return super().encode(values)


def part(peer: RoundPeer) -> int:
    """How many values it averaged in its last exchange."""
    exchanges = peer.rounds._exchanges
    own = exchanges[next(reversed(exchanges))]._part
    return own.stop - own.start


async def test_a_slow_peer_averages_less_from_the_second_round_on_and_the_mean_is_the_same(tmp_path: Path) -> None:
    made = Swarm(tmp_path, parameters=PARAMETERS, deadlines=replace(DEADLINES, exchange=20.0))
    try:
        slow = await made.add(codec=PacedCodec(0.5))
        fast = await asyncio.gather(*(made.add(codec=PacedCodec(0.02)) for _ in range(PEERS - 1)))
        await made.meet()
        values = {peer.peer_id: torch.full((PARAMETERS,), float(index)) for index, peer in enumerate(made.peers)}
        await made.step(values)
        assert {part(peer) for peer in made.peers} == {CHUNKS_EACH * CHUNK_VALUES}, "nothing is known yet"
        await made.step(values)
        assert part(slow) < CHUNKS_EACH * CHUNK_VALUES / 2
        assert all(part(peer) > part(slow) for peer in fast)
        assert sum(map(part, made.peers)) == PARAMETERS
        agreed(made.peers)
        expected = -2 * torch.full((PARAMETERS,), sum(range(PEERS)) / PEERS)  # SGD at 1.0, twice
        assert all(torch.equal(peer.parameters, expected) for peer in made.peers)
    finally:
        await made.stop()
