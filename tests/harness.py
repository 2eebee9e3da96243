"""Real peers for tests, many in one process: each has its own p2pd, identity, state and rounds on loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import torch

from peer.layout import Layout
from peer.optimizers import outer_optimizer
from peer.rounds.assembly import Terms
from peer.rounds.codec import Codec, codec_of
from peer.rounds.context import Context, Deadlines
from peer.rounds.election import leader_order
from peer.rounds.rounds import Rounds
from peer.state.store import Store
from peer.state.transfer import Transfer
from peer.values import LocalResult, RoundResult, Stage
from swarm.history import Head, heavier
from swarm.identity import Identity, PeerId
from swarm.manifest import Round
from swarm.network import Network
from swarm.optimizer import Optimizer
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
RECOVERY_SECONDS = 5.0
"""Survivors commit again within this, plus the deadlines that a fault makes them wait for."""


def bound(terms: Terms, deadlines: Deadlines) -> float:
    """Seconds within which a swarm commits after a fault, whatever the fault."""
    waits = terms.patience_seconds + terms.assemble_seconds + deadlines.exchange + deadlines.commit
    return RECOVERY_SECONDS + waits + 2 * deadlines.silence


@dataclass
class Recorder:
    """A listener that remembers, and lets a test act when a stage is reached."""

    stages: list[tuple[Stage, int]] = field(default_factory=list)
    refusals: list[tuple[PeerId, str]] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    hook: Callable[[Stage, int], object] | None = None
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def reached(self, stage: Stage, outer_step: int) -> None:
        self.stages.append((stage, outer_step))
        self._news.set()
        if self.hook is not None:
            awaitable = self.hook(stage, outer_step)
            if awaitable is not None:
                await awaitable  # type: ignore[misc]

    def refused(self, peer: PeerId, reason: str) -> None:
        self.refusals.append((peer, reason))
        self._news.set()

    def waiting(self, reason: str) -> None:
        self.waits.append(reason)
        self._news.set()

    async def until(self, condition: Callable[[Recorder], bool], seconds: float = 10.0) -> None:
        """Waits for something to be recorded. Raises asyncio.TimeoutError."""

        async def wait() -> None:
            while not condition(self):
                self._news.clear()
                await self._news.wait()

        await asyncio.wait_for(wait(), seconds)


@dataclass
class RoundPeer:
    """A peer as rounds see it: no model, a flat vector of parameters. digests: by outer step, of what it committed."""

    network: Network
    store: Store
    rounds: Rounds
    transfer: Transfer
    recorder: Recorder
    transfers: list[tuple[str, str]]
    digests: dict[int, str] = field(default_factory=dict)
    dead: bool = False

    @property
    def peer_id(self) -> PeerId:
        return self.network.peer_id

    @property
    def parameters(self) -> torch.Tensor:
        """Committed, float32 [parameters]."""
        return self.store.committed.parameters

    async def outer_step(self, contribution: torch.Tensor, examples: int, loss: float = 1.0) -> RoundResult:
        """One attempt with this contribution."""
        attempt = await self.rounds.attempt()
        attempt.report(examples)
        attempt.finish(LocalResult(contribution.clone(), examples, 1, loss))  # the round writes over it
        result = await self.rounds.run(attempt)
        if result.committed:
            self.digests[self.store.head.outer_step] = self.store.head.digest
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

    async def catch_up(self, donors: Sequence[PeerId], claims: Mapping[PeerId, Head] | None = None) -> bool:
        """As a daemon does: adopts a heavier state, and forgets what it promised at its old one."""
        found = await self.transfer.catch_up(donors, lambda head: heavier(head, self.store.head), claims)
        if found:
            self.rounds.forget()
            self.digests[self.store.head.outer_step] = self.store.head.digest
        return found

    def kill(self) -> None:
        """SIGKILL for its p2pd: to the others it is a dead peer."""
        self.dead = True
        self.network.kill()


@dataclass
class Swarm:
    """Makes peers that know each other. mean_keep_one_in: of "sparse", where the mean is denser."""

    folder: Path
    parameters: int = 1000
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(optimizer="sgd", learning_rate=1.0))
    codec: str = "fp32"
    mean_keep_one_in: int | None = None
    terms: Terms = TERMS
    deadlines: Deadlines = DEADLINES
    max_examples: int = 100_000
    initial: torch.Tensor | None = None
    residual: bool = False
    peers: list[RoundPeer] = field(default_factory=list)

    @property
    def rules(self) -> Round:
        """Of the manifest, what says how values travel."""
        density = {} if self.mean_keep_one_in is None else {"mean_keep_one_in": self.mean_keep_one_in}
        return Round.model_validate({"average": "updates", "inner_steps": 1, "codec": self.codec, **density})

    @property
    def live(self) -> list[RoundPeer]:
        """The peers that were not killed."""
        return [peer for peer in self.peers if not peer.dead]

    async def add(
        self,
        *,
        codec: Codec | None = None,
        initial: torch.Tensor | None = None,
        client: bool = False,
        wrap: Callable[[Network], Network] = lambda network: network,
        chunk_seconds: float = 20.0,
        rate: int = 0,
        **changes: object,
    ) -> RoundPeer:
        """Starts a peer.

        client: cannot listen. rate: bytes per second that it gives to others' downloads. wrap: puts a hand on its
        streams (``tests.evil``). changes: replace fields of its Context.
        """
        identity = Identity.load_or_create(self.folder / f"{len(list(self.folder.glob('*.key')))}.key")
        options = P2PDOptions(identity.path, host_maddrs=() if client else ("/ip4/127.0.0.1/tcp/0",))
        initial_peers = [address for peer in self.live[:1] for address in peer.network.visible_maddrs]
        network = wrap(await Network.start(identity, options, initial_peers))
        layout = Layout((("weight", (self.parameters,)),))
        initial = self.initial if initial is None else initial
        start = torch.zeros(self.parameters) if initial is None else initial.clone()
        store = Store(RUN_ID, layout, start, outer_optimizer(self.optimizer))
        transfers: list[tuple[str, str]] = []
        transfer = Transfer(
            RUN_ID, store, network, lambda *outcome: transfers.append(outcome), chunk_seconds=chunk_seconds, rate=rate
        )
        store.fetcher = transfer.fetch
        recorder = Recorder()
        context = Context(
            run_id=RUN_ID, identity=identity, network=network, ledger=store,
            codec=codec or codec_of(self.rules),
            terms=self.terms, deadlines=self.deadlines, listener=recorder, max_examples=self.max_examples,
            max_norm_ratio=20.0, parameters=self.parameters, residual=self.residual,
        )  # fmt: skip
        rounds = Rounds(replace(context, **changes), store.commit)  # type: ignore[arg-type]
        peer = RoundPeer(network, store, rounds, transfer, recorder, transfers)
        self.peers.append(peer)
        await rounds.start()
        await transfer.start()
        await network.wait_joined(20.0)
        return peer

    async def meet(self) -> None:
        """Everybody knows everybody, as the daemon's watch of the swarm's records brings about."""
        for one in self.live:
            for other in self.live:
                if one is not other and other.network.maddrs:
                    assert await one.network.dial(other.peer_id, other.network.maddrs)
        self.see()

    def see(self) -> None:
        """Tells every peer who is at its head."""
        for one in self.peers:
            one.rounds.see(
                {
                    other.peer_id: other.network.maddrs
                    for other in self.live
                    if other is not one and other.store.head == one.store.head and other.network.maddrs
                }
            )

    def ordered(self, outer_step: int, peers: Iterable[RoundPeer] | None = None) -> list[RoundPeer]:
        """The peers in the order in which they are asked to lead the attempts at the state after ``outer_step``."""
        by_id = {peer.peer_id: peer for peer in (self.live if peers is None else peers)}
        return [by_id[peer_id] for peer_id in leader_order(RUN_ID, outer_step, by_id)]

    async def step(
        self,
        contributions: Mapping[PeerId, torch.Tensor],
        examples: Mapping[PeerId, int] | int = 10,
        peers: Iterable[RoundPeer] | None = None,
        seconds: float | None = None,
    ) -> list[RoundResult]:
        """All ``peers`` (else all live ones) try until they commit, within ``seconds`` (else ``bound``)."""

        def weight(peer: RoundPeer) -> int:
            return examples if isinstance(examples, int) else examples[peer.peer_id]

        tries = [
            peer.step_until_committed(contributions[peer.peer_id], weight(peer))
            for peer in (self.live if peers is None else peers)
        ]
        limit = bound(self.terms, self.deadlines) if seconds is None else seconds
        try:
            return await asyncio.wait_for(asyncio.gather(*tries), limit)
        finally:
            self.see()

    async def stop(self) -> None:
        """Stops everybody. Raises AssertionError when a p2pd is left."""
        pids = [peer.network.p2pd_pid for peer in self.peers]
        await asyncio.gather(*(peer.network.stop() for peer in self.peers))
        assert not [pid for pid in pids if psutil.pid_exists(pid)]


def agreed(peers: Iterable[RoundPeer]) -> None:
    """Asserts that no two peers ever held different digests at the same outer step."""
    by_step: dict[int, set[str]] = {}
    for peer in peers:
        for outer_step, digest in peer.digests.items():
            by_step.setdefault(outer_step, set()).add(digest)
    assert not {outer_step: found for outer_step, found in by_step.items() if len(found) > 1}


@contextlib.asynccontextmanager
async def swarm(folder: Path, count: int, **fields: object) -> AsyncIterator[Swarm]:
    """``count`` peers that know each other, stopped at the end."""
    made = Swarm(folder, **fields)  # type: ignore[arg-type]
    try:
        await made.add()
        await asyncio.gather(*(made.add() for _ in range(count - 1)))
        await made.meet()
        yield made
    finally:
        await made.stop()
