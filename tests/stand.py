"""A swarm to try faults on: three honest peers and one whose codec and streams a test may spoil.

Starting four p2pd takes longer than most faults. So the tests of a module share one stand, and ``ready`` mends it
before each: new peers for dead ones, the committed state for who fell behind, and nobody held against anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from peer.rounds.absences import Absences
from peer.rounds.assembly import Terms
from peer.rounds.context import Context, Deadlines
from peer.rounds.partition import CHUNK_VALUES
from swarm.history import Link
from swarm.identity import PeerId
from swarm.wire import Message
from tests.evil import EvilCodec, Tamper, Tap, honest
from tests.harness import RoundPeer, Swarm, agreed

PEERS = 4
EXAMPLES = 10
SECONDS = 60.0
"""What a test may take in all."""
PARAMETERS = PEERS * (CHUNK_VALUES + 8)  # two chunks for each part
DEADLINES = Deadlines(exchange=2.0, commit=2.5, seat=2.0, alive=0.3, silence=2.0)
TERMS = Terms(
    min_group_size=2,
    max_group_size=64,
    target_batch=None,
    patience_seconds=2.0,
    assemble_seconds=3.0,
    isolation_seconds=60.0,
)


class Hand:
    """What the culprit does to values and messages; nothing until a test says so."""

    def __init__(self) -> None:
        self.encode: Callable[[torch.Tensor, bytes], bytes] = _as_is
        self.tamper: Tamper = honest

    def codec(self) -> EvilCodec:
        """Encodes as the hand wants at the time."""

        def spoil(values: torch.Tensor, encoded: bytes) -> bytes:
            return self.encode(values, encoded)

        return EvilCodec(spoil)

    def tap(self, network: object) -> Tap:
        """Sends what the hand wants at the time."""

        def tamper(peer: PeerId, message: Message, payload: bytes) -> tuple[Message, bytes] | bytes:
            return self.tamper(peer, message, payload)

        return Tap(network, tamper=tamper)  # type: ignore[arg-type]

    def rest(self) -> None:
        """Leaves everything as it is."""
        self.encode, self.tamper = _as_is, honest


def _as_is(values: torch.Tensor, encoded: bytes) -> bytes:
    return encoded


class Stand:
    """The swarm, its culprit, and what each peer contributes: vectors of about the same norm."""

    def __init__(self, folder: Path) -> None:
        self.swarm = Swarm(folder, parameters=PARAMETERS, terms=TERMS, deadlines=DEADLINES)
        self.hand = Hand()
        self.culprit: RoundPeer
        self._context: Context
        self.given: dict[PeerId, torch.Tensor] = {}
        self._generator = torch.Generator().manual_seed(3)

    @property
    def honest(self) -> list[RoundPeer]:
        """All live peers but the culprit."""
        return [peer for peer in self.swarm.live if peer is not self.culprit]

    async def add(self, *, client: bool = False, culprit: bool = False) -> RoundPeer:
        """A new peer, with the committed state if there is one."""
        if culprit:
            peer = await self.swarm.add(codec=self.hand.codec(), wrap=self.hand.tap, client=client)  # type: ignore[arg-type]
        else:
            peer = await self.swarm.add(client=client)
        self.given[peer.peer_id] = torch.randn(PARAMETERS, generator=self._generator)
        return peer

    async def ready(self, *, client: bool = False) -> None:
        """Four live peers at one head that know each other, after at least one commit of all of them.

        client: the culprit cannot listen.
        """
        self.hand.rest()
        live = self.swarm.live
        culprit = getattr(self, "culprit", None)
        if culprit is None or culprit.dead or bool(culprit.network.maddrs) == client or culprit not in live:
            if culprit is not None and not culprit.dead:
                culprit.kill()
            self.culprit = await self.add(client=client, culprit=True)
            self._context = self.culprit.rounds.context
        for _ in range(PEERS - len(self.swarm.live)):
            await self.add()
        for peer in self.swarm.live:
            peer.rounds.absences = Absences()
            peer.recorder.hook = None
            peer.recorder.refusals.clear()
        self.culprit.rounds.context = self._context
        await self.swarm.meet()
        await self._level()
        while set(self.swarm.live[0].store.participants or ()) != {peer.peer_id for peer in self.swarm.live}:
            await self.swarm.step(self.given, EXAMPLES)  # nobody waits for a newcomer: it may miss the first one
            await self._level()

    async def _level(self) -> None:
        """Who fell behind downloads the committed state."""
        best = max(self.swarm.live, key=lambda peer: peer.store.head.work)
        for peer in self.swarm.live:
            if peer.store.head != best.store.head:
                assert await peer.catch_up([best.peer_id])
        self.swarm.see()

    async def commit(self, peers: list[RoundPeer]) -> Link:
        """``peers`` commit one outer step within the bound, and it is the mean over the link's participants."""
        before = {peer.peer_id: peer.parameters for peer in peers}
        step = peers[0].store.head.outer_step
        results = await self.swarm.step(self.given, EXAMPLES, peers)
        assert all(result.committed for result in results), [result.reason for result in results]
        links = [peer.store.history.certificates[-1].link for peer in peers]
        link = links[0]
        assert {one.hash() for one in links} == {link.hash()}
        assert link.outer_step == step + 1
        mean = weighted_mean(self.given, link.participants)
        for peer in peers:
            moved = before[peer.peer_id].double() - peer.parameters.double()
            torch.testing.assert_close(moved, mean, rtol=0, atol=1e-4)
        agreed(peers)
        return link

    def turn(self, **changes: object) -> None:
        """Replaces fields of the culprit's Context, so that it gets past its own gates from its next attempt on."""
        self.culprit.rounds.context = replace(self._context, **changes)  # type: ignore[arg-type]

    async def until_leading(self, peer: RoundPeer, leads: bool) -> None:
        """All commit until ``peer`` is the first to be asked to lead, or is not."""
        while (self.swarm.ordered(peer.store.head.outer_step)[0] is peer) != leads:
            await self.commit(self.swarm.live)

    @contextlib.asynccontextmanager
    async def alongside(self, contribution: torch.Tensor, examples: int = EXAMPLES) -> AsyncIterator[None]:
        """The culprit takes part meanwhile; how it fares does not matter."""

        async def take_part() -> None:
            for _ in range(3):
                with contextlib.suppress(AssertionError):  # it may have committed in between
                    await self.culprit.step_until_committed(contribution, examples)

        task = asyncio.ensure_future(take_part())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def refusals(self) -> set[tuple[PeerId, str]]:
        """What the honest peers refused, and why."""
        return {one for peer in self.honest for one in peer.recorder.refusals}


def weighted_mean(given: Mapping[PeerId, torch.Tensor], weights: Mapping[PeerId, int]) -> torch.Tensor:
    """float64 [parameters]."""
    total = sum(weights.values())
    return sum((given[peer].double() * weight for peer, weight in weights.items() if weight), torch.zeros(())) / total


@contextlib.asynccontextmanager
async def stand(folder: Path) -> AsyncIterator[Stand]:
    """Stopped at the end, with no p2pd left."""
    made = Stand(folder)
    try:
        yield made
    finally:
        await made.swarm.stop()


timed = partial(asyncio.wait_for, timeout=SECONDS)
"""Bounds a test."""
