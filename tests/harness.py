"""Real peers for tests, many in one process: each has its own p2pd, identity, state and rounds on loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from peer.optimizers import outer_optimizer
from peer.rounds.assembly import Terms
from peer.rounds.codec import CODECS, Codec
from peer.rounds.context import Context, Deadlines, Stage
from peer.rounds.rounds import Rounds
from peer.layout import Layout
from peer.state.store import Store
from peer.state.transfer import Transfer
from peer.values import LocalResult, RoundResult
from swarm.identity import Identity, PeerId
from swarm.optimizer import Optimizer
from swarm.network import Network
from swarm.p2pd import P2PDOptions

RUN_ID = "test@0123456789abcdef"
TERMS = Terms(
    min_group_size=2,
    max_group_size=64,
    target_batch=None,
    patience_seconds=3.0,
    assemble_seconds=3.0,
    isolation_seconds=60.0,
)
DEADLINES = Deadlines(exchange=3.0, commit=5.0, seat=2.0, alive=0.5, silence=3.0)


@dataclass
class Recorder:
    """A listener that remembers, and lets a test act when a stage is reached."""

    stages: list[tuple[Stage, int]] = field(default_factory=list)
    refusals: list[tuple[PeerId, str]] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    hook: Callable[[Stage, int], object] | None = None

    async def reached(self, stage: Stage, outer_step: int) -> None:
        self.stages.append((stage, outer_step))
        if self.hook is not None:
            awaitable = self.hook(stage, outer_step)
            if awaitable is not None:
                await awaitable  # type: ignore[misc]

    def refused(self, peer: PeerId, reason: str) -> None:
        self.refusals.append((peer, reason))

    def waiting(self, reason: str) -> None:
        self.waits.append(reason)


@dataclass
class RoundPeer:
    """A peer as rounds see it: no model, a flat vector of parameters."""

    network: Network
    store: Store
    rounds: Rounds
    transfer: Transfer
    recorder: Recorder
    digests: list[str] = field(default_factory=list)

    @property
    def peer_id(self) -> PeerId:
        return self.network.peer_id

    async def outer_step(self, contribution: torch.Tensor, examples: int, loss: float = 1.0) -> RoundResult:
        """One attempt with this contribution."""
        attempt = await self.rounds.attempt()
        attempt.report(examples)
        attempt.finish(LocalResult(contribution, examples, 1, loss))
        result = await self.rounds.run(attempt)
        if result.committed:
            self.digests.append(self.store.head.digest)
        return result

    async def step_until_committed(self, contribution: torch.Tensor, examples: int, tries: int = 6) -> RoundResult:
        """As a daemon does: tries again after an abort."""
        step = self.store.head.outer_step
        result = await self.outer_step(contribution, examples)
        for _ in range(tries):
            if result.committed or result.reason in ("behind", "digest"):
                break
            assert self.store.head.outer_step == step
            result = await self.outer_step(contribution, examples)
        return result

    def kill(self) -> None:
        """SIGKILL for its p2pd: to the others it is a dead peer."""
        self.network.kill()


@dataclass
class Swarm:
    """Makes peers that know each other."""

    folder: Path
    parameters: int = 1000
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(optimizer="sgd", learning_rate=1.0)
    )
    codec: str = "fp32"
    terms: Terms = TERMS
    deadlines: Deadlines = DEADLINES
    max_examples: int = 100_000
    peers: list[RoundPeer] = field(default_factory=list)

    async def add(self, *, codec: Codec | None = None, initial: torch.Tensor | None = None, **changes: object) -> RoundPeer:
        """Starts a peer; ``changes`` replace fields of its Context."""
        identity = Identity.load_or_create(self.folder / f"{len(self.peers)}.key")
        options = P2PDOptions(identity.path, host_maddrs=("/ip4/127.0.0.1/tcp/0",))
        initial_peers = [address for peer in self.peers[:1] for address in peer.network.visible_maddrs]
        network = await Network.start(identity, options, initial_peers)
        layout = Layout((("weight", (self.parameters,)),))
        start = torch.zeros(self.parameters) if initial is None else initial.clone()
        store = Store(RUN_ID, layout, start, outer_optimizer(self.optimizer))
        transfer = Transfer(RUN_ID, store, network, lambda direction, outcome: None)
        store.fetcher = transfer.fetch
        recorder = Recorder()
        context = Context(
            run_id=RUN_ID, identity=identity, network=network, ledger=store, codec=codec or CODECS[self.codec](),
            terms=self.terms, deadlines=self.deadlines, listener=recorder, max_examples=self.max_examples,
            max_norm_ratio=20.0, parameters=self.parameters,
        )  # fmt: skip
        rounds = Rounds(replace(context, **changes), store.commit)  # type: ignore[arg-type]
        peer = RoundPeer(network, store, rounds, transfer, recorder)
        await rounds.start()
        await transfer.start()
        self.peers.append(peer)
        await network.wait_joined(20.0)
        return peer

    async def meet(self) -> None:
        """Everybody knows everybody, as the daemon's watch of the swarm's records brings about."""
        for one in self.peers:
            for other in self.peers:
                if one is not other:
                    assert await one.network.dial(other.peer_id, other.network.maddrs)
        self.see()

    def see(self) -> None:
        """Tells every peer who is at its head."""
        for one in self.peers:
            one.rounds.see(
                {
                    other.peer_id: other.network.maddrs
                    for other in self.peers
                    if other is not one and other.store.head == one.store.head
                }
            )

    async def stop(self) -> None:
        await asyncio.gather(*(peer.network.stop() for peer in self.peers))


@contextlib.asynccontextmanager
async def swarm(folder: Path, count: int, **fields: object) -> AsyncIterator[Swarm]:
    """``count`` peers that know each other, stopped at the end."""
    made = Swarm(folder, **fields)  # type: ignore[arg-type]
    try:
        for _ in range(count):
            await made.add()
        await made.meet()
        yield made
    finally:
        await made.stop()
